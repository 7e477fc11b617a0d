"""Decoders whose stock code keeps the cache, or what attention functions need, to itself: blocks called in another way.

All that has weights is the family's own, down to the names of the tensors; what calls it is here, the same for all.

Letters in shapes:
    B  batch          S  new tokens
    D  hidden size    T  tokens seen (the cache and the new ones)
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .transformers_api import CACHE_NAME, takes_kv_cache  # noqa: TID251 - beside this file, too

make_causal_mask = takes_kv_cache(create_causal_mask)


class PlainPreTrainedModel:
    """What the models of such a family have in front of the stock class that each of them is.

    Attributes:
        base_class: the family's base model, made from (config).
    """

    config_class: Any
    base_class: Any
    base_model_prefix: str
    _can_record_outputs: Any
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # transformers' patterns are for buffers in checkpoints of the stock class, and vLLM drops what they are found in
    _keys_to_ignore_on_load_unexpected: Any = None

    def __init__(self, config: Any) -> None:
        # By name, past the stock __init__: that would build the stock blocks, which refuse other attention functions
        # than their own in some versions of transformers. What is inherited from the stock class is forward.
        PreTrainedModel.__init__(self, config)  # type: ignore[arg-type]  # a mixin of one
        self.build(config)
        self.post_init()  # type: ignore[attr-defined]  # of the stock class

    def build(self, config: Any) -> None:
        """Make the modules: of a head, the base model and its own."""
        setattr(self, self.base_model_prefix, self.base_class(config))
        self.add_head(config)

    def add_head(self, config: Any) -> None:
        """Make what a head has over the base model."""


class MaskedByItself(PlainPreTrainedModel):
    """Such models whose attention adds slopes or a window by itself: an engine's own attention would know of none."""

    _supports_attention_backend = False
    _supports_flash_attn = False
    _supports_flex_attn = False


class PlainBlock(GradientCheckpointingLayer):
    """A decoder block, whose `run` is the family's and whose forward is `plain_block_forward`."""

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]; arguments: of the attention, by name."""
        raise NotImplementedError


class PlainParts:
    """What `plain_forward` asks of a base model: embeddings, blocks and the last norm.

    Attributes:
        output_class: of transformers, what the installed stock model returns.
        block_list, final_norm: what the modules with the blocks and the last norm are called.
    """

    output_class: Callable[..., Any] = BaseModelOutputWithPast
    block_list = "h"
    final_norm = "ln_f"

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks that are run, in order."""
        blocks: Iterable[Any] = getattr(self, self.block_list)
        return blocks

    def positions(self, inputs_embeds: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        """[1 or B, S]: where no positions are given, those that follow what the cache holds.

        inputs_embeds: [B, S, D]; mask: [B, T] 0 where a text is padded, or None.
        """
        seen = 0 if cache is None else cache.get_seq_length()
        return (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """Make what enters the first block, [B, S, D], of token embeddings.

        given: "token_type_ids" and "padding", the mask, or None; arguments: what every block will be called with, which
        may be added to.
        """
        return inputs_embeds

    def last_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed: torch.Tensor = getattr(self, self.final_norm)(hidden_states)
        return normed


class LayerDropParts(PlainParts):
    """Parts whose blocks are left out at random in training, as often as `layerdrop` says."""

    layerdrop: Any
    training: Any

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks that are run, in order."""
        blocks = super().decoder_blocks()
        return [block for block in blocks if not (self.training and torch.rand([]) < self.layerdrop)]


class PlainModel(PlainParts, PlainPreTrainedModel):
    """A base model that makes its own parts, in `build`."""


def plain_block_forward(
    self: Any,
    hidden_states: torch.Tensor,
    *,
    kv_cache: Cache | None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """[B, S, D] -> [B, S, D]: the forward of a PlainBlock. What is in kwargs reaches the attention."""
    arguments = kwargs | {CACHE_NAME: kv_cache, "attention_mask": attention_mask, "position_ids": position_ids}
    if position_embeddings is not None:
        arguments["position_embeddings"] = position_embeddings
    output: torch.Tensor = self.run(hidden_states, arguments)
    return output


@merge_with_config_defaults
@capture_outputs
def plain_forward(
    self: Any,
    *,
    kv_cache: Cache | None,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> Any:
    """input_ids [B, S] or inputs_embeds [B, S, D] -> last_hidden_state [B, S, D].

    The forward of a PlainModel. What is left over in kwargs reaches the attention function.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    if inputs_embeds is None:
        if getattr(self.config, "pad_token_id", None) is not None:  # some configs have no such key
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        inputs_embeds = self.get_input_embeddings()(input_ids)
    if use_cache and kv_cache is None:
        kv_cache = DynamicCache(config=self.config)
    if position_ids is None:
        position_ids = self.positions(inputs_embeds, attention_mask, kv_cache)
    arguments = kwargs | {CACHE_NAME: kv_cache, "position_ids": position_ids}
    given = {"token_type_ids": token_type_ids, "padding": attention_mask}
    hidden_states = self.embed(inputs_embeds, given, arguments)
    arguments["attention_mask"] = make_causal_mask(
        config=self.config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        kv_cache=kv_cache,
        position_ids=position_ids,
    )
    for block in self.decoder_blocks():
        hidden_states = block(hidden_states, **arguments)
    make_output = takes_kv_cache(self.output_class)
    return make_output(last_hidden_state=self.last_norm(hidden_states), kv_cache=kv_cache if use_cache else None)


__all__ = [
    "LayerDropParts",
    "MaskedByItself",
    "PlainBlock",
    "PlainModel",
    "PlainParts",
    "PlainPreTrainedModel",
    "plain_block_forward",
    "plain_forward",
]
