"""How the layers of a plan get their new form: from weights alone, or from what calibration text tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.calibration.calibrate import Calibration, Collecting, calibrate, collecting, kept
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.fitting.layers import Layers
from convert_attn.convert.fitting.made import Report
from convert_attn.convert.fitting.measure import Head, Measured, can_be_measured, measure
from convert_attn.convert.fitting.ranks import Trial, splits
from convert_attn.convert.fitting.refit import NewLayer, SideBySide
from convert_attn.convert.fitting.similarity import Similarity, compare_embeddings
from convert_attn.convert.methods.base import LayerContext
from convert_attn.convert.planning.calibration_text import no_text
from convert_attn.convert.planning.plan import Plan, replan
from convert_attn.convert.planning.provenance import public
from convert_attn.convert.progress import Progress
from convert_attn.convert.stored_numbers import DTYPES
from convert_attn.convert.streaming.stream import Stream
from convert_attn.convert.targets.base import Converted
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.pair_windows import HALVED, count_tokens
from convert_attn.convert.text.windows import AUTO, AUTO_TOKENS, SAMPLE, Windows, calibration_windows, shipped_windows

_SAMPLED = 4  # of so many windows one is enough to choose sizes on


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What is known once the text has been read.

    Attributes:
        plan: with the sizes that were chosen on it.
        convert: a layer's new form; to be asked for in order, each when the one before it has been given.
        separate: layers know nothing of each other: they may be asked for at once.
        tokens: of calibration text, 0 without.
        warnings: sentences for the user.
        measure: once all layers are converted: original and result on held-out text.
    """

    plan: Plan
    convert: Callable[[int], NewLayer]
    separate: bool = False
    tokens: int = 0
    warnings: tuple[str, ...] = ()
    measure: Report = lambda: "not asked for"


@contextmanager
def fitting(plan: Plan, progress: Progress) -> Iterator[Fitting]:
    """Give everything that comes before the first layer is converted."""
    layers = Layers(plan)
    if plan.unchanged:
        yield Fitting(
            plan=plan, convert=lambda layer: NewLayer(layers.read(layer)), measure=lambda: "nothing was changed"
        )
        return
    with torch.no_grad(), ExitStack() as stack:
        yield _Session(plan, stack, progress).fitting()


@dataclass
class _Session:
    """The texts of a conversion, and what is open while it runs."""

    plan: Plan
    stack: ExitStack
    progress: Progress

    def fitting(self) -> Fitting:
        """See `fitting`."""
        plan = self.plan
        warnings: tuple[str, ...] = ()
        windows, unread = windows_of(plan, AUTO_TOKENS if plan.request.calibration == AUTO else None)
        if unread:
            plan, warnings = replace(plan, text=None), (no_text(unread),)
        held, called = self._held(windows)
        sizes = plan.geometry
        stream = Stream(plan.source, plan.arch, sizes, plan.request.device)
        known: Calibration | None = None
        if windows is not None:
            warnings = windows.warnings + _short(count_tokens(windows.fit), sizes.hidden_size)
            warnings += (_HALVES,) if stream.across and not windows.pairs else ()
            layers = Layers(plan)
            if not plan.refit or _chooses_sizes(plan):
                known = calibrate(
                    plan.source,
                    stream,
                    read=layers.read,
                    windows=_sample(windows.fit, sizes.hidden_size) if plan.refit else windows.fit,
                    layers=sizes.num_layers,
                    heads=sizes.num_heads,
                    progress=self.progress,
                )
                plan = _sized(plan, Trial(layers, stream, known, windows.selection), self.progress)
            if plan.refit:  # which runs the original over all of the text
                known = kept(plan.source, windows.fit, stream.device)
        collected = None
        if windows is not None and known is None:
            opened = collecting(plan.source, stream, windows.fit, sizes.num_heads)
            collected = self.stack.enter_context(opened)
        solved = windows if plan.refit else None
        pair = self.stack.enter_context(
            SideBySide(
                stream,
                None if solved is None else solved.fit,
                None if solved is None else solved.selection,
                held,
                heads=sizes.num_heads,
                dtype=DTYPES[plan.cache_dtype],
                mlp=plan.refit_mlp,
            )
        )
        run = _Run(Layers(plan), pair, known or collected, collected)

        def report() -> Measured | Similarity | str:
            if held is None:
                return called
            original, converted = pair.held
            if not sizes.causal:
                return compare_embeddings(original, converted, called)
            head = Head(plan.source, stream.device, plan.arch)
            pairs = windows is not None and windows.pairs and held is windows.held
            halved = stream.across and not pairs
            called_so = f"{called}, halves of windows as source and target" if halved else called
            return measure(head, stream.targets(held), original, converted, called_so)

        return Fitting(
            plan=plan,
            convert=run.convert,
            separate=not pair.runs and known is None and collected is None and not plan.method.draws,
            tokens=0 if windows is None else windows.tokens,
            warnings=warnings,
            measure=report,
        )

    def _held(self, windows: Windows | None) -> tuple[Tensor | None, str]:
        """Windows to measure on and what they are; None and the reason where there are none."""
        plan = self.plan
        origin = plan.source.origin
        if not plan.request.measure:
            return None, "--no-measure"
        encoder = not plan.geometry.causal
        reason = can_be_measured(plan.source, encoder)
        if reason is not None:
            return None, reason
        if windows is not None and windows.held is not None:
            kind = "pairs" if windows.pairs else "text"
            return windows.held, f"{kind} of {public(plan.text)} that nothing was fitted on"
        if plan.arch.cross is not None and plan.arch.cross.reads != "text":
            few = "; give --calibration more pairs, an eighth of which are measured on" if windows is not None else ""
            return None, f"'{origin.name}' reads {plan.arch.cross.reads}, of which the package has none{few}"
        vocabulary: int = typed_config(plan.source.config, origin.name).vocab_size
        own = SAMPLE if origin.name.startswith("sample:") else plan.text
        try:
            context = plan.geometry.context
            return shipped_windows(
                own, origin.folder, origin.name, context, vocabulary, encoder=encoder, decoder=_decoder(plan)
            )
        except ConvertAttnError as error:
            return None, str(error)


def windows_of(plan: Plan, tokens: int | None) -> tuple[Windows | None, str]:
    """Give the calibration text of a plan, and why there is none where the default could not be read.

    Args:
        tokens: of it, where no number was asked for; None: all.

    Raises:
        ConvertAttnError: text that was asked for by name, or that the method needs, cannot be read.
    """
    request, sizes, origin = plan.request, plan.geometry, plan.source.origin
    if plan.text is None:
        return None, ""
    vocabulary: int = typed_config(plan.source.config, origin.name).vocab_size
    try:
        windows = calibration_windows(
            plan.text,
            origin.folder,
            name=origin.name,
            context=sizes.context,
            vocabulary=vocabulary,
            tokens=request.calibration_tokens or tokens,
            seed=request.seed,
            encoder=not sizes.causal,
            decoder=_decoder(plan),
        )
    except ConvertAttnError as error:
        if request.calibration != AUTO or plan.method.calibration == "needed":
            raise
        return None, str(error).partition(":")[0]
    return windows, ""


def _decoder(plan: Plan) -> Decoder | None:
    """What targets begin with; None of what is no encoder-decoder."""
    source = plan.source
    if plan.arch.cross is None:
        return None
    origin = source.origin
    return Decoder.of(typed_config(source.config, origin.name), source.auto_class, origin.folder, origin.name)


def _chooses_sizes(plan: Plan) -> bool:
    """Whether sizes are chosen on the text, before any layer is converted."""
    asked = plan.request.cache_ratio is not None and plan.method.chooses_sizes
    return asked and isinstance(plan.form, LatentCache)


def _sample(windows: Tensor, hidden: int) -> Tensor:
    """Some of the windows, to choose sizes on: one in four, or as many more as it takes for two tokens a channel."""
    return windows[:: max(1, min(_SAMPLED, count_tokens(windows) // (2 * hidden)))]


_HALVES = (
    f"plain text has no pairs: {HALVED}; give --calibration a .jsonl file of pairs, each line with 'source' and "
    "'target'"
)


def _short(tokens: int, hidden: int) -> tuple[str, ...]:
    if tokens >= hidden:
        return ()
    return (
        f"the calibration text has {tokens} tokens for fitting, fewer than the hidden size {hidden}: what it says was "
        "damped by the guess that is made without text; give more for a better result",
    )


def _sized(plan: Plan, trial: Trial, progress: Progress) -> Plan:
    """MLA by --cache-ratio: the split and the ranks are chosen; sizes that the user gave stay."""
    form, sizes = plan.form, plan.geometry
    if not _chooses_sizes(plan) or not isinstance(form, LatentCache):
        return plan
    if form.rope_dim:
        form = trial.best(splits(form, sizes.hidden_size, sizes.turning_keys), progress)
    if "rank" in plan.target.by_layer:
        form = trial.ranks(form, progress)
    return replan(plan, form)


@dataclass(frozen=True)
class _Run:
    """Layer after layer, in order.

    Attributes:
        known: tells what was seen of a layer; None where there is no text.
        collected: what sees the original's attention, where that is not known from before.
    """

    layers: Layers
    pair: SideBySide
    known: Calibration | Collecting | None
    collected: Collecting | None

    def convert(self, layer: int) -> NewLayer:
        """Give the layer's new form."""
        weights, of_layer = self.layers.read(layer), self.layers.plan.form.of_layer(layer)
        is_read = layer not in self.layers.plan.geometry.seeing  # else no text tells anything of it

        def new() -> tuple[Converted, LayerContext]:
            known = self.known if is_read else None
            context = self.layers.context(layer, None if known is None else known.layer(layer))
            return self.layers.convert(weights, context, of_layer), context

        if not self.pair.runs or not is_read:
            return NewLayer(new()[0])
        return self.pair.settle(layer, weights, new, None if self.collected is None else self.collected.watch)
