"""XGLM around an attention of another kind: everything else has the names it had.

Letters in shapes: B batch, S new tokens, D hidden size.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.xglm.modeling_xglm import (
    XGLMDecoderLayer,
    XGLMScaledWordEmbedding,
    XGLMSinusoidalPositionalEmbedding,
)

from .plain_decoder import PlainModel  # noqa: TID251 - beside this file in a checkpoint, too
from .transformers_api import CACHE_NAME  # noqa: TID251


class XGLMBackboneLayer(XGLMDecoderLayer):
    """One layer of XGLM.

    Attributes:
        attention_class: made from (config, number of the layer), and called as the stock one.
    """

    attention_class: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        if config.add_cross_attention:
            raise ValueError(f"{config.model_type} has no cross attention: set add_cross_attention=False")
        super().__init__(config, layer_idx)
        self.self_attn = self.attention_class(config, layer_idx)


class XGLMBackbone(PlainModel):
    """Embeddings, blocks and the last LayerNorm.

    Attributes:
        block_class: made from (config, number of the layer).
    """

    block_class: Any
    training: bool
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def build(self, config: Any) -> None:
        """Make the modules."""
        size: int = config.hidden_size
        padding: Any = config.pad_token_id
        scale = size**0.5 if config.scale_embedding else 1.0
        self.embed_tokens = XGLMScaledWordEmbedding(config.vocab_size, size, padding, embed_scale=scale)
        self.embed_positions = XGLMSinusoidalPositionalEmbedding(config.max_position_embeddings, size, padding)
        self.layers = nn.ModuleList([self.block_class(config, layer) for layer in range(config.num_layers)])
        self.layer_norm = nn.LayerNorm(size)
        self.dropout, self.layerdrop = float(config.dropout), float(config.layerdrop)
        self.gradient_checkpointing = False

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks; in training some are left out at random, where the config says so."""
        return [layer for layer in self.layers if not (self.training and torch.rand([]) < self.layerdrop)]

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D], positions added."""
        cache = arguments[CACHE_NAME]
        positions = self.embed_positions(arguments["position_ids"], 0 if cache is None else cache.get_seq_length())
        states = inputs_embeds + positions.to(inputs_embeds.device)
        return nn.functional.dropout(states, p=self.dropout, training=self.training)

    def last_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed: torch.Tensor = self.layer_norm(hidden_states)
        return normed


__all__ = ["XGLMBackbone", "XGLMBackboneLayer"]
