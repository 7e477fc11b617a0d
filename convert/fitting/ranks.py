"""MLA's sizes where only a share of the cache was asked for: chosen by what layers lose on selection text.

A layer's loss is the error of its attention's output, relative to the residual stream that it is added to. On
SmolLM2-135M that is, within a factor of two, what the layer's conversion alone costs in KL; the share of the layer's
own score and output energy that a truncated spectrum gives away is not, and ranks chosen by it did no better than one
rank for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.calibration.calibrate import Calibration, batches
from convert_attn.convert.fitting.layers import Layers
from convert_attn.convert.fitting.refit import single
from convert_attn.convert.planning.sizes import STEP
from convert_attn.convert.progress import Progress
from convert_attn.convert.streaming.stream import Stream
from convert_attn.convert.targets.base import Converted
from convert_attn.convert.weights.functional import Attention
from convert_attn.convert.weights.relative_error import relative_error

_SHARES = (0.25, 0.375, 0.5, 0.625)  # of the cache, for the rotary key
_TRIALS = 4  # layers on which splits are compared, evenly spaced: a fit of a large layer takes minutes
_MEASURED = (0.25, 0.5, 1.0, 1.5)  # times the mean rank: where every layer's error is measured
_SWEEPS = 3  # of a trial's fits: on SmolLM2 within 1.5 % of the error that 20 reach, at every rank
_NOTHING = 1e-12  # an error that is none


def splits(form: LatentCache, hidden: int, most: int) -> list[LatentCache]:
    """Give ways to part a cache of the same size into latent and rotary key, the form's own first."""
    total = form.rank + form.rope_dim
    dims = (min(most, max(STEP, round(share * total / STEP) * STEP)) for share in _SHARES)
    found = [form]
    for rope_dim in dims:
        layers = len(form.ranks)
        other = replace(form, ranks=(total - rope_dim,) * layers, rope_dims=(rope_dim,) * layers)
        if 0 < other.rank < hidden and other not in found:
            found.append(other)
    return found


@dataclass(frozen=True)
class _Seen:
    """The original's attention on a batch, and the energy [B, T] of the residual stream after it."""

    attention: Attention
    output: Tensor
    stream: Tensor


@dataclass
class Trial:
    """The original's layers on selection text, with fits of them tried on what those layers read."""

    layers: Layers
    stream: Stream
    calibration: Calibration
    windows: Tensor

    @torch.no_grad()
    def best(self, forms: list[LatentCache], progress: Progress) -> LatentCache:
        """Give the form that loses least over the trial layers."""
        if len(forms) == 1:
            return forms[0]
        last = self.layers.plan.geometry.num_layers - 1
        chosen = {round(n * last / (_TRIALS - 1)) for n in range(_TRIALS)}
        errors = torch.zeros(len(forms), dtype=torch.float64)
        for layer, seen in self._run("split", progress):
            if layer in chosen:
                errors += torch.tensor([*self._errors(layer, forms, seen)], dtype=torch.float64)
        return forms[int(errors.argmin())]

    @torch.no_grad()
    def ranks(self, form: LatentCache, progress: Progress) -> LatentCache:
        """Give the form with a rank for each layer, the same cache in all."""
        most = self.layers.plan.geometry.hidden_size // STEP * STEP
        sizes = sorted({min(most, max(STEP, round(form.rank * part / STEP) * STEP)) for part in _MEASURED})
        forms = [replace(form, ranks=(rank,) * len(form.ranks)) for rank in sizes]
        curves = [
            filled_in(sizes, [*self._errors(layer, forms, seen)], most) for layer, seen in self._run("ranks", progress)
        ]
        return replace(form, ranks=greedy(curves, form.rank * len(curves) // STEP, sizes[0] // STEP))

    def _run(self, stage: str, progress: Progress) -> Iterator[tuple[int, list[_Seen]]]:
        """The original over the text: each layer with what its attention did."""
        sizes = self.layers.plan.geometry
        states = list(self.stream.embed(batches(self.windows, sizes.num_heads)))
        for layer in range(sizes.num_layers):
            progress(stage, layer, sizes.num_layers)
            states, seen = self._advance(layer, states)
            yield layer, seen
        progress(stage, sizes.num_layers, sizes.num_layers)

    def _advance(self, layer: int, states: list[Tensor]) -> tuple[list[Tensor], list[_Seen]]:
        weights = single(self.layers.read(layer))
        seen: list[_Seen] = []
        with self.stream.block(layer) as block:

            def attend(x: Tensor) -> Tensor:
                output = Attention(weights, x, block.rule).output()
                stream = (states[len(seen)].to(output.device) + output).square().sum(-1)
                seen.append(_Seen(Attention(weights, x, block.rule), output, stream))  # without the heads in memory
                return output

            return [block.run(part, attend) for part in states], seen

    def _errors(self, layer: int, forms: list[LatentCache], seen: list[_Seen]) -> Iterator[float]:
        """For each form the squared error of the layer's output relative to the stream, the mean over tokens."""
        weights = self.layers.read(layer)
        context = replace(self.layers.context(layer, self.calibration.layer(layer)), sweeps=_SWEEPS)
        for form in forms:
            converted = single(self.layers.convert(weights, context, form.of_layer(layer)))
            missed = torch.cat([_missed(converted, part).flatten() for part in seen])
            yield float(missed.nan_to_num(1.0).mean(dtype=torch.float64))


def _missed(converted: Converted, seen: _Seen) -> Tensor:
    """[B, T], at most 1 for a token."""
    attention = replace(seen.attention, weights=converted)
    return relative_error((attention.output() - seen.output).square().sum(-1), seen.stream)


def filled_in(sizes: Sequence[int], errors: Sequence[float], most: int) -> list[float]:
    """Give errors of the ranks STEP, 2 STEP, ..., most from those of some: the logarithm goes straight between them.

    It goes on beyond the last as it came; below the first nothing is known, and the error is the first one's.
    """
    logs = [math.log(max(error, _NOTHING)) for error in errors]
    found = []
    for rank in range(STEP, most + 1, STEP):
        above = min(sum(size < rank for size in sizes), len(sizes) - 1)
        if rank <= sizes[0] or len(sizes) == 1:
            found.append(math.exp(logs[0]))
            continue
        low, high = sizes[above - 1], sizes[above]
        slope = min(0.0, (logs[above] - logs[above - 1]) / (high - low))
        found.append(math.exp(logs[above - 1] + slope * (rank - low)))
    return found


def greedy(curves: list[list[float]], count: int, least: int = 1) -> tuple[int, ...]:
    """Give ranks that make the sum of all layers' errors small, `count` blocks of eight directions in all.

    Args:
        curves: for each layer the error with 1, 2, ... blocks.
        least: blocks that every layer has.
    """
    taken = [min(least, len(curve)) for curve in curves]
    left = count - sum(taken)
    steps = [_best_step(curve, have, left) for curve, have in zip(curves, taken, strict=True)]
    while left > 0:
        layer = max(range(len(curves)), key=lambda n: steps[n][0])
        blocks = steps[layer][1]
        if not blocks:
            break
        if blocks <= left:
            taken[layer] += blocks
            left -= blocks
        steps[layer] = _best_step(curves[layer], taken[layer], left)
    return tuple(STEP * number for number in taken)


def _best_step(curve: list[float], have: int, left: int) -> tuple[float, int]:
    """The largest gain for each block more, and how many blocks it takes, as a curve may fall late; 0 at its end."""
    steps = range(1, min(left, len(curve) - have) + 1)
    return max((((curve[have - 1] - curve[have - 1 + n]) / n, n) for n in steps), default=(-math.inf, 0))
