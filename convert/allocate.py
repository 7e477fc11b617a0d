"""MLA's sizes where only a share of the cache was asked for: chosen on the calibration text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convert_attn.convert.calibrate import Calibration, batches
from convert_attn.convert.form import LatentCache
from convert_attn.convert.functional import Attention
from convert_attn.convert.layers import Layers
from convert_attn.convert.progress import Progress
from convert_attn.convert.refit import single
from convert_attn.convert.request import STEP
from convert_attn.convert.stream import Stream

_SHARES = (0.25, 0.375, 0.5, 0.625)  # of the cache, for the rotary key
_TRIALS = 4  # layers on which splits are compared, evenly spaced: a fit of a large layer takes minutes


def splits(form: LatentCache, hidden: int, most: int) -> list[LatentCache]:
    """Ways to part a cache of the same size into latent and rotary key, the form's own first."""
    total = form.rank + form.rope_dim
    dims = (min(most, max(STEP, round(share * total / STEP) * STEP)) for share in _SHARES)
    found = [form]
    for rope_dim in dims:
        other = replace(form, rank=total - rope_dim, rope_dim=rope_dim)
        if 0 < other.rank < hidden and other not in found:
            found.append(other)
    return found


@dataclass
class Trial:
    """The original's layers on selection text, with fits of some of them tried on what those layers read."""

    layers: Layers
    stream: Stream
    calibration: Calibration
    windows: Tensor

    @torch.no_grad()
    def best(self, forms: list[LatentCache], progress: Progress) -> LatentCache:
        """The form whose attention outputs come nearest to the original's, relative to them, over the trial layers."""
        if len(forms) == 1:
            return forms[0]
        sizes = self.layers.plan.geometry
        parts = batches(self.windows, sizes.num_heads)
        states = list(self.stream.embed(parts))
        chosen = {round(n * (sizes.num_layers - 1) / (_TRIALS - 1)) for n in range(_TRIALS)}
        errors = torch.zeros(len(forms), dtype=torch.float64)
        for layer in range(sizes.num_layers):
            progress("split", layer, sizes.num_layers)
            states, outputs = self._advance(layer, states)
            if layer in chosen:
                errors += torch.tensor([*self._errors(layer, forms, outputs)], dtype=torch.float64)
        progress("split", sizes.num_layers, sizes.num_layers)
        return forms[int(errors.argmin())]

    def _advance(self, layer: int, states: list[Tensor]) -> tuple[list[Tensor], list[tuple[Attention, Tensor]]]:
        """The states after a layer, and its attention with the output it gives, batch by batch."""
        weights = single(self.layers.read(layer))
        seen: list[tuple[Attention, Tensor]] = []
        with self.stream.block(layer) as block:

            def attend(x: Tensor) -> Tensor:
                attention = Attention(weights, x, block.rule)
                seen.append((attention, attention.output()))
                return seen[-1][1]

            return [block.run(part, attend) for part in states], seen

    def _errors(self, layer: int, forms: list[LatentCache], seen: list[tuple[Attention, Tensor]]) -> Iterator[float]:
        """For each form the squared error of the layer's outputs, relative to them."""
        weights = self.layers.read(layer)
        context = self.layers.context(layer, self.calibration.layer(layer))
        energy = sum(float(output.square().sum()) for _, output in seen)
        for form in forms:
            converted = single(self.layers.convert(weights, context, form))
            missed = (
                float((Attention(converted, attention.x, attention.rule).output() - output).square().sum())
                for attention, output in seen
            )
            yield sum(missed) / max(energy, 1e-200)


def allocate(layers: Layers, calibration: Calibration, form: LatentCache, progress: Progress) -> LatentCache:
    """Ranks layer by layer with the same total: the next eight directions go where they are worth most.

    Worth is the share of a layer's score and output energy that the directions carry, from the layer's own spectrum
    (`Method.losses`); no conversion is tried.
    """
    sizes = layers.plan.geometry
    blocks: list[Tensor] = []
    for layer in range(sizes.num_layers):
        progress("ranks", layer, sizes.num_layers)
        context = layers.context(layer, calibration.layer(layer))
        values = layers.losses(layers.read(layer), context, form)
        blocks.append(values[: len(values) // STEP * STEP].unflatten(0, (-1, STEP)).sum(1))
    progress("ranks", sizes.num_layers, sizes.num_layers)
    return replace(form, ranks=greedy(blocks, form.rank * sizes.num_layers // STEP))


def greedy(blocks: list[Tensor], count: int) -> tuple[int, ...]:
    """Ranks from the worth of each layer's blocks of eight directions (descending), `count` blocks in all."""
    taken = [1] * len(blocks)
    for _ in range(count - len(blocks)):
        open_layers = [layer for layer, values in enumerate(blocks) if taken[layer] < len(values)]
        if not open_layers:
            break
        best = max(open_layers, key=lambda layer: float(blocks[layer][taken[layer]]))
        taken[best] += 1
    return tuple(STEP * number for number in taken)
