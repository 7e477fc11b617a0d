"""Speed gained: prefill and decode of the original and a conversion, taking turns in one run.

A context of T tokens means: prefill reads T tokens at once, and decode makes the T-th token in front of a cache of
T - 1. An encoder-decoder reads a source of T tokens besides, in prefill by its encoder, in decode out of its cache. The
cache is the one that `generate` uses by default (transformers' DynamicCache, which copies what it holds at every step);
what a step costs is what a user of `generate` pays for it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import transformers
from torch import Tensor

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.isolated import pairs
from convert_attn.convert.isolated.behaviour import MisbehaviourError, attention_modules, check_decode, probe_tokens
from convert_attn.eval.measures.contenders import free_bytes
from convert_attn.eval.measures.decoding import cache_layers, cache_of, continuing, has_encoder, reading
from convert_attn.eval.measures.figures import size
from convert_attn.eval.measures.memory import cache_bytes_per_token
from convert_attn.eval.measures.quality import Advance
from convert_attn.eval.measures.timing import Spread, Timed, take_turns

ORIGINAL, CONVERTED = "original", "converted"


class AttentionClock:
    """Seconds that a model spends in its attention modules, projections and cache included, call by call."""

    def __init__(self, model: Any) -> None:
        self._cuda = model.device.type == "cuda"
        self._open: list[Any] = []
        self._spans: list[tuple[Any, Any]] = []
        self.seconds: list[float] = []
        modules = attention_modules(model)
        self.found = len(modules)
        self._hooks = [
            module.register_forward_pre_hook(lambda *_: self._open.append(self._now())) for module in modules
        ]
        self._hooks += [module.register_forward_hook(self._leave) for module in modules]

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _leave(self, *_: Any) -> None:
        self._spans.append((self._open.pop(), self._now()))

    def end_call(self) -> None:
        """Add up the spans of one call; the device must be done with it."""
        if self._cuda:
            self.seconds.append(sum(begin.elapsed_time(end) for begin, end in self._spans) / 1e3)
        else:
            self.seconds.append(sum(end - begin for begin, end in self._spans))
        self._spans.clear()

    def last(self, calls: int) -> Spread | None:
        """Give the spread of the last so many calls, None where no attention module was found."""
        return Spread.of(self.seconds[-calls:]) if self.found else None

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()


def _last_logits(model: Any) -> dict[str, int]:
    """Prefill needs the logits of one token only."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


class _Runner:
    """One model at one context and batch size."""

    def __init__(self, model: Any, tokens: Tensor) -> None:
        """tokens: [batch, T]."""
        self._model, self._tokens = model, tokens.to(model.device)
        self._keep = _last_logits(model)
        self._cache: Any = None
        self._held: list[dict[str, Any]] = []
        self.clock = AttentionClock(model)

    def prefill(self) -> Timed:
        """Give all T tokens."""
        given = reading(self._model, self._tokens)
        return Timed(lambda: self._model(**given, use_cache=True, **self._keep), self.clock.end_call)

    def decode(self) -> Timed:
        """Give the T-th token, after which the cache is set back to T - 1."""
        model = self._model
        source = self._tokens if has_encoder(model) else self._tokens[:, :-1]
        made = model(**reading(model, source, self._tokens[:, :-1]), use_cache=True, **self._keep)
        self._cache = cache_of(made)
        self._held = [dict(vars(layer)) for layer in cache_layers(self._cache)]
        self.clock.end_call()
        given = continuing(model, made, self._tokens[:, -1:])
        return Timed(lambda: model(**given, use_cache=True), self._reset)

    def _reset(self) -> None:
        # a dynamic layer holds new tensors after every step: the old ones are still what they were
        for layer, held in zip(cache_layers(self._cache), self._held, strict=True):
            vars(layer).update(held)
        self.clock.end_call()


def timed_figures(spreads: Mapping[str, Spread | None], tokens: int) -> dict[str, Any] | None:
    """Give the spread of both models, tokens per second, and the original's time over the conversion's.

    The range of the speed-up pairs the slow quartile of one with the fast quartile of the other.
    """
    original, converted = spreads[ORIGINAL], spreads[CONVERTED]
    if original is None or converted is None:
        return None
    return {
        **{name: asdict(spread) for name, spread in ((ORIGINAL, original), (CONVERTED, converted))},
        "tokens_per_second": {
            ORIGINAL: 1e3 * tokens / original.median_ms,
            CONVERTED: 1e3 * tokens / converted.median_ms,
        },
        "speedup": {
            "median": original.median_ms / converted.median_ms,
            "low": original.lower_quartile_ms / converted.upper_quartile_ms,
            "high": original.upper_quartile_ms / converted.lower_quartile_ms,
        },
    }


def _timed(
    runners: Mapping[str, _Runner], what: str, tokens: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    calls = {name: runner.prefill() if what == "prefill" else runner.decode() for name, runner in runners.items()}
    spreads = take_turns(calls, repeats, device)
    attention = {name: runner.clock.last(spreads[name].repeats) for name, runner in runners.items()}
    return {what: timed_figures(spreads, tokens), f"{what}_attention": timed_figures(attention, tokens)}


@torch.inference_mode()
def _cell(models: Mapping[str, Any], context: int, batch: int, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(context)
    vocabulary = models[ORIGINAL].config.vocab_size
    tokens = torch.randint(vocabulary, (batch, context), generator=generator)
    runners = {name: _Runner(model, tokens) for name, model in models.items()}
    device = models[ORIGINAL].device
    try:
        return {
            **_timed(runners, "prefill", batch * context, repeats, device),
            **_timed(runners, "decode", batch, repeats, device),
        }
    finally:
        for runner in runners.values():
            runner.clock.remove()


def _check_cache(name: str, model: Any) -> None:
    """A step that does not read its cache is fast and worth nothing."""
    try:
        tokens = probe_tokens(model.config).to(model.device)
        if has_encoder(model):
            pairs.check_decode(model, tokens)
            pairs.check_generate(model, tokens)
        else:
            check_decode(model, tokens)
    except MisbehaviourError as error:
        raise ConvertAttnError(
            f"the {name} model ({type(model).__name__} in transformers {transformers.__version__}) {error}: its "
            "decoding is not timed; `convert-attn verify` tells more, --no-speed leaves the times out"
        ) from None


def compare_speed(
    original: Any,
    converted: Any,
    *,
    contexts: Sequence[int],
    batch_sizes: Sequence[int],
    repeats: int,
    advance: Advance,
) -> list[dict[str, Any]]:
    """Time both models at every context and batch size.

    Returns:
        one entry each: `context`, `batch_size`, and `prefill`, `decode`, `prefill_attention`, `decode_attention`, or
        `skipped`, a sentence.

    Raises:
        ConvertAttnError: a model does not decode with its cache what it computes without.
    """
    models = {ORIGINAL: original, CONVERTED: converted}
    for name, model in models.items():
        _check_cache(name, model)
    per_token = sum(cache_bytes_per_token(model) for model in models.values())
    cells = [(context, batch) for batch in batch_sizes for context in contexts]
    rows = []
    for index, (context, batch) in enumerate(cells):
        row: dict[str, Any] = {"context": context, "batch_size": batch}
        needed = 2 * per_token * context * batch  # a step makes a second copy
        free = free_bytes(str(original.device))
        if needed > free:
            row["skipped"] = f"the caches need {size(needed)} and {size(free)} are free"
        else:
            try:
                row |= _cell(models, context, batch, repeats)
            except torch.OutOfMemoryError:
                row["skipped"] = "out of memory"
        rows.append(row)
        advance(index + 1, len(cells))
    return rows
