"""A model that writes in two halves: its base model, and what its class makes of the base's last states.

Logits of a whole batch are often the largest tensor of a training step. With halves they are made for a few tokens at a
time. The second half is the class's own forward, its base handing on the states it is given: scales, soft caps and
biases of a class are in it without being known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convert_attn.convert.text.pair_windows import MARK, both_sides, readable, trimmed
from convert_attn.convert.text.sounds import read_source, sounds_of

_TOLERANCE = 1e-5  # of the largest logit: halves that compute the same differ by less, besides their dtype's rounding
_ROUNDINGS = 8
_TRIED = 8  # tokens


@dataclass(frozen=True)
class States:
    """What a first half gives.

    Attributes:
        last: [B, T, D] for the second half; of a model that is not halved, its logits [B, T, vocabulary].
        hidden: of every layer, embeddings first, where it was asked for.
    """

    last: Tensor
    hidden: tuple[Tensor, ...] | None


class Halves:
    """A causal language model's halves, of the same parameters.

    Attributes:
        together: the class does not come apart.
        encoder: it is an encoder: its last hidden states are all that is asked of it.
    """

    def __init__(self, model: Any, encoder: bool = False) -> None:
        self._model, self._forward = model, model.forward
        self.encoder, self.two_stacks = encoder, bool(getattr(model.config, "is_encoder_decoder", False))
        # of an encoder-decoder the decoder gives what the second half reads
        self._base = model.get_decoder() if self.two_stacks else model.base_model
        self.together = self._base is model and not encoder

    @property
    def whole(self) -> bool:
        """Whether logits are made at once, and the second half hands them on."""
        return not self.encoder and (self.together or self._sharded_apart())

    def _sharded_apart(self) -> bool:
        """Whether a half gathers its shards by itself: gradients of what it gathers would go nowhere."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return False
        from torch.distributed.fsdp import FSDPModule

        return isinstance(self._base, FSDPModule) or isinstance(self._model.get_output_embeddings(), FSDPModule)

    @property
    def vocabulary(self) -> int:
        """Words, the width of the logits."""
        return int(self._model.config.get_text_config().vocab_size)

    def states(self, tokens: Tensor, hidden: bool = False) -> States:
        """Give token ids [B, T], or windows of pairs, through the first half: of targets their states."""
        if self.two_stacks:
            return self._states_of_pairs(tokens, hidden)
        run = self._forward if self.whole else self._base
        out = run(input_ids=tokens, use_cache=False, output_hidden_states=hidden)
        return States(out.logits if self.whole else out.last_hidden_state, out.hidden_states if hidden else None)

    def _states_of_pairs(self, windows: Tensor, hidden: bool) -> States:
        source, target = both_sides(windows)
        read, written = read_source(self._model, source), readable(target)
        asked: dict[str, Any] = {"use_cache": False, "output_hidden_states": hidden}
        if self.whole:
            out = self._forward(**read, decoder_input_ids=written, **asked)
            return States(out.logits, out.decoder_hidden_states if hidden else None)
        met = self._model.get_encoder()(**read)[0]
        mask = {"encoder_attention_mask": read["attention_mask"]} if "attention_mask" in read else {}
        out = self._base(input_ids=written, encoder_hidden_states=met, **mask, **asked)
        return States(out.last_hidden_state, out.hidden_states if hidden else None)

    def logits(self, states: Tensor) -> Tensor:
        """Give rows of the first half's last states [n, D] -> [n, vocabulary]."""
        if self.whole:
            return states
        given: dict[str, Any] = {"input_ids": torch.zeros(1, len(states), dtype=torch.int64, device=states.device)}
        if self.two_stacks:
            given = {"decoder_input_ids": given["input_ids"], "encoder_outputs": (states[None],)}
        with _handing_on(self._base, states[None]):
            made: Tensor = self._forward(**given, use_cache=False).logits
        return made[0]

    def parameters(self) -> list[nn.Parameter]:
        """Tell what the second half may compute with and is trained."""
        first = [self._base, *([self._model.get_encoder()] if self.two_stacks else [])]
        inside = {id(parameter) for part in first for parameter in part.parameters()}
        head = self._model.get_output_embeddings()
        own = [parameter for parameter in self._model.parameters() if id(parameter) not in inside]
        found = {id(parameter): parameter for parameter in [*own, *(() if head is None else head.parameters())]}
        return [parameter for parameter in found.values() if parameter.requires_grad]

    @torch.no_grad()
    def try_out(self, tokens: Tensor) -> None:
        """Find out whether the halves compute what the whole does, on the first tokens of [B, T]; `together` if not."""
        if self.encoder:
            return
        part = self._first(tokens).to(self._model.device)
        given = {"input_ids": part}
        if self.two_stacks:
            source, target = both_sides(part)
            given = read_source(self._model, source) | {"decoder_input_ids": target}
        wanted = self._forward(**given, use_cache=False).logits[0]
        try:  # in two chunks: a class may look from one token at another
            rows = self.states(part).last[0]
            made = torch.cat([self.logits(chunk) for chunk in rows.split(_TRIED // 2)])
        except Exception:  # the class decides what it raises where its base is not what it called
            self.together = True
            return
        share = _TOLERANCE + _ROUNDINGS * torch.finfo(wanted.dtype).eps
        self.together = made.shape != wanted.shape or bool(((made - wanted).abs() > share * wanted.abs().max()).any())

    def _first(self, tokens: Tensor) -> Tensor:
        """The first tokens of a window; of a pair those of both sides."""
        if not self.two_stacks:
            return tokens[:1, :_TRIED]
        source, target = both_sides(trimmed(tokens[:1]))
        source = source[:, :_TRIED] if sounds_of(self._model) is None else source
        return torch.cat([source, torch.full_like(tokens[:1, :1], MARK), target[:, :_TRIED]], 1)


@contextmanager
def _handing_on(base: nn.Module, states: Tensor) -> Iterator[None]:
    """The base model gives these states, whatever it is called with."""
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    def forward(*args: Any, **kwargs: Any) -> Any:
        out: Any = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)
        out.router_logits = None  # classes with experts hand them on
        return out

    base.forward = forward
    try:
        yield
    finally:
        vars(base).pop("forward", None)  # the class's own shows again
