"""How the layers of a plan get their new form: from weights alone, or from what calibration text tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from convert_attn.convert.allocate import Trial, allocate, splits
from convert_attn.convert.calibrate import Calibration, calibrate
from convert_attn.convert.calibration_text import calibration_windows
from convert_attn.convert.class_facts import typed_config
from convert_attn.convert.form import LatentCache
from convert_attn.convert.layers import Layers
from convert_attn.convert.methods.base import LayerContext
from convert_attn.convert.plan import Plan, replan
from convert_attn.convert.progress import Progress
from convert_attn.convert.refit import SideBySide
from convert_attn.convert.stream import Stream
from convert_attn.convert.targets.base import Converted

_SCORE_SHARES = (1.0, 0.5, 2.0)  # lambda, tried layer by layer


@dataclass(frozen=True)
class Fitting:
    """What is known once the text has been read.

    Attributes:
        plan: with the sizes that were chosen on it.
        convert: a layer's new form; to be asked for in order.
        tokens: of calibration text, 0 without.
        warnings: sentences for the user.
    """

    plan: Plan
    convert: Callable[[int], Converted]
    tokens: int = 0
    warnings: tuple[str, ...] = ()


@contextmanager
def fitting(plan: Plan, progress: Progress) -> Iterator[Fitting]:
    """Everything that comes before the first layer is converted."""
    if plan.request.calibration is None or plan.unchanged:
        layers = Layers(plan)
        yield Fitting(plan, lambda layer: layers.convert(layers.read(layer), layers.context(layer, None)))
        return
    with torch.no_grad(), _calibrated(plan, plan.request.calibration, progress) as found:
        yield found


@contextmanager
def _calibrated(plan: Plan, text: str, progress: Progress) -> Iterator[Fitting]:
    request, sizes, origin = plan.request, plan.geometry, plan.source.origin
    vocabulary: int = typed_config(plan.source.config, origin.name).vocab_size
    windows = calibration_windows(
        text, origin.folder, origin.name, sizes.context, vocabulary, request.calibration_tokens, request.seed
    )
    stream = Stream(plan.source, plan.arch, sizes, plan.prefix, request.device)
    layers = Layers(plan)
    known = calibrate(plan.source, stream, layers.read, windows.fit, sizes.num_layers, sizes.num_heads, progress)
    plan = _sized(plan, layers, Trial(layers, stream, known, windows.selection), known, progress)
    warnings = windows.warnings + _short(windows.fit.numel(), sizes.hidden_size)
    run = _CalibratedLayers(Layers(plan), known)
    if not plan.refit:
        yield Fitting(plan, run.plain, windows.tokens, warnings)
        return
    with SideBySide(stream, windows.fit, windows.selection, sizes.num_heads, progress) as pair:
        yield Fitting(plan, lambda layer: run.refitted(layer, pair), windows.tokens, warnings)


def _short(tokens: int, hidden: int) -> tuple[str, ...]:
    if tokens >= hidden:
        return ()
    return (
        f"the calibration text has {tokens} tokens for fitting, fewer than the hidden size {hidden}: what it says was "
        "damped by the guess that is made without text; give more for a better result",
    )


def _sized(plan: Plan, layers: Layers, trial: Trial, known: Calibration, progress: Progress) -> Plan:
    """MLA by --cache-ratio: the split and the ranks are chosen; sizes that the user gave stay."""
    form, sizes = plan.form, plan.geometry
    if not isinstance(form, LatentCache) or plan.request.cache_ratio is None or plan.method.losses is None:
        return plan
    if form.rope_dim:
        form = trial.best(splits(form, sizes.hidden_size, sizes.num_kv_heads * sizes.head_dim), progress)
    if plan.target.layout == "custom":
        form = allocate(layers, known, form, progress)
    return replan(plan, form)


@dataclass(frozen=True)
class _CalibratedLayers:
    layers: Layers
    known: Calibration

    def plain(self, layer: int) -> Converted:
        """Fitted on the statistics."""
        return self.layers.convert(self.layers.read(layer), self._context(layer), self._form(layer))

    def refitted(self, layer: int, pair: SideBySide) -> Converted:
        """The best of several fits, its output projection solved anew."""
        weights, form = self.layers.read(layer), self._form(layer)
        shares = _SCORE_SHARES if form is not None and self.layers.plan.method.losses is not None else (1.0,)
        context = self._context(layer)
        candidates = [
            partial(self.layers.convert, weights, replace(context, score_share=share), form) for share in shares
        ]
        return pair.settle(layer, weights, candidates)

    def _form(self, layer: int) -> LatentCache | None:
        form = self.layers.plan.form
        return form.of_layer(layer) if isinstance(form, LatentCache) else None

    def _context(self, layer: int) -> LayerContext:
        return self.layers.context(layer, self.known.layer(layer))
