"""What a conversion costs on text that nothing was fitted on: original and result, from the last block's states on.

The states come from the run side by side (`refit`), block by block, so a model never has to fit as a whole. From there
the class of the source does the rest: its last norm, its head and whatever it does to logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.attention_call import handed_on
from convert_attn.convert.classes.auto_classes import WRITES
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, first_line
from convert_attn.convert.streaming.skeleton import decoder_blocks

_LOSSY, _RUIN = 1.25, 2.0  # times the original's perplexity: from where a sentence says so


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A mean over windows and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Original and result on held-out text, in float32 arithmetic with the result's weights as stored.

    Attributes:
        text: what it was measured on.
        windows, length: how many windows of how many tokens; of pairs, of how many tokens of the target on average.
        original, perplexity: of both on the next token.
        kl: KL(original || result), nats per token.
        top1: how often both hold the same token for the likeliest.
        log_ratio: log(perplexity of the result / of the original), paired by window.
    """

    text: str
    windows: int
    length: int
    original: HeldOut
    perplexity: HeldOut
    kl: HeldOut
    top1: HeldOut
    log_ratio: HeldOut

    @property
    def ratio(self) -> float:
        """Perplexity of the result as a multiple of the original's."""
        return math.exp(min(self.log_ratio.mean, 700.0))

    @property
    def is_ruin(self) -> bool:
        """Whether nobody would use it as it is."""
        return self.ratio > _RUIN

    @property
    def is_lossy(self) -> bool:
        """Whether the loss wants a remedy."""
        return self.ratio > _LOSSY


def estimate(values: list[float], tokens: list[int] | None = None) -> HeldOut:
    """Give the mean of one value a window, with its standard error (0 for a single one).

    Args:
        tokens: of each window, which weighs as many; the error is that of a ratio of sums (Cochran, Sampling
            Techniques, 1977, section 6.4). None: windows are of one length.
    """
    tensor, count = torch.tensor(values, dtype=torch.float64), len(values)
    weights = torch.ones_like(tensor) if tokens is None else torch.tensor(tokens, dtype=torch.float64)
    weights = weights / weights.mean()
    mean = (weights * tensor).mean()
    spread = (weights * (tensor - mean)).square().sum() / max(1, count - 1)
    return HeldOut(mean=float(mean), error=float((spread / count).sqrt()) if count > 1 else 0.0)


def _perplexity(losses: list[float], tokens: list[int]) -> HeldOut:
    loss = estimate(losses, tokens)
    value = math.exp(min(loss.mean, 700.0))
    return HeldOut(mean=value, error=value * loss.error)


def can_be_measured(source: Source, encoder: bool = False) -> str | None:
    """Give a sentence on why a checkpoint has no perplexity, or an encoder no embeddings; None where it has."""
    if not encoder and source.auto_class not in WRITES:
        return f"'{source.origin.name}' has no language-model head"
    return None if source.has_tokenizer else f"'{source.origin.name}' has no tokenizer"


class Head:
    """What the source's class does after its last block: its blocks hand on what they are given.

    Args:
        device: where it runs; in float32.
        arch: facts of the source.
    """

    def __init__(self, source: Source, device: str, arch: Architecture) -> None:
        self._device, cross = device, arch.cross
        self._two_stacks, self._hands_on = cross is not None, () if cross is None else cross.hands_on
        config, auto = typed_config(source.whole, source.origin.name), getattr(transformers, source.auto_class)
        try:
            with init_empty_weights(include_buffers=False):
                model: Any = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
        except Exception as error:  # the class decides what it raises
            raise ConvertAttnError(
                f"the class of '{source.origin.name}' cannot be made in transformers: {first_line(error)}"
            ) from None
        self._model = model.eval()
        own = source.names.base
        within = "" if cross is None else f"{cross.stack}."
        found = decoder_blocks(model.get_submodule(f"{own}{within}".rstrip(".")))
        if found is None:
            raise ConvertAttnError(f"'{source.origin.name}' has no list of decoder blocks in its class")
        stem, blocks = found
        left_out = (f"{own}{within}{stem}.", *([] if cross is None else [f"{own}{cross.encoder}."]))
        # of a larger model only what text goes through
        read = (own, *(() if source.within is None else _head_names(model)))
        outside = [
            name
            for name, _ in model.named_parameters()
            if not name.startswith(left_out) and (source.within is None or name.startswith(read))
        ]
        known = source.names
        made = [name for name in outside if not known.stored(name) and known.is_made(name)]
        for name in made:
            module = model.get_submodule(name.rpartition(".")[0]).to_empty(device=device)
            model._init_weights(module)
        outside = [name for name in outside if name not in made]
        if missing := next((name for name in outside if not known.stored(name)), None):
            raise ConvertAttnError(f"'{source.origin.name}' has no tensor for '{missing}', which its class needs")
        for name, value in source.names.read_all(outside, source.weights.read):
            parent, _, last = name.rpartition(".")
            wide = nn.Parameter(value.to(device, torch.float32), requires_grad=False)
            setattr(model.get_submodule(parent), last, wide)
        for name, buffer in model.named_buffers():
            if known.stored(name):
                buffer.copy_(known.read(name, source.weights.read))
        model.tie_weights()
        self._states: Tensor | None = None
        for block in blocks:
            block.forward = self._pass_on

    def _pass_on(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert self._states is not None
        return handed_on(self._states, args, self._hands_on)

    @torch.no_grad()
    def logits(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Give logits [B, T, words] in float32 of token ids [B, T] from the last block's states [B, T, D]."""
        self._states = states.to(self._device)
        given: dict[str, Any] = {"input_ids": tokens.to(self._device)}
        if self._two_stacks:  # blocks hand on what they are given: nothing reads the encoder's
            given = {"decoder_input_ids": given["input_ids"], "encoder_outputs": (self._states,)}
        found: Tensor = self._model(**given, use_cache=False).logits
        return found.float()


def _head_names(model: Any) -> tuple[str, ...]:
    """What names of the language-model head begin with."""
    head = model.get_output_embeddings()
    return tuple(f"{name}." for name, module in model.named_modules() if module is head)


def measure(head: Head, tokens: Tensor, original: Tensor, converted: Tensor, text: str) -> Measured:
    """Compare two runs over the same windows.

    Args:
        tokens: [N, T]; what fills up shorter ones is below 0.
        original, converted: [N, T, D] states after the last block.
        text: what to call it.
    """
    rows, lengths = [], (tokens >= 0).sum(1).tolist()
    for length, ids, ours, theirs in zip(lengths, tokens, converted, original, strict=True):
        window = ids[None, :length]
        p, q = (head.logits(window, states[None, :length])[:, :-1].log_softmax(-1) for states in (theirs, ours))
        after = window[:, 1:, None].to(p.device)
        rows.append(
            (
                -float(p.gather(-1, after).mean()),
                -float(q.gather(-1, after).mean()),
                float((p.exp() * (p - q)).sum(-1).mean()),
                float((p.argmax(-1) == q.argmax(-1)).float().mean()),
            )
        )
    before, now, kl, top1 = ([row[n] for row in rows] for n in range(4))
    counted = [length - 1 for length in lengths]
    return Measured(
        text=text,
        windows=len(tokens),
        length=round(sum(lengths) / len(lengths)),
        original=_perplexity(before, counted),
        perplexity=_perplexity(now, counted),
        kl=estimate(kl, counted),
        top1=estimate(top1, counted),
        log_ratio=estimate([b - a for a, b in zip(before, now, strict=True)], counted),
    )
