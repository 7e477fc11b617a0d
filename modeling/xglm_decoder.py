"""XGLM around an attention of another kind: everything else has the names it had.

Letters in shapes: B batch, S new tokens, D hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.xglm.modeling_xglm import (
    XGLMDecoderLayer,
    XGLMScaledWordEmbedding,
    XGLMSinusoidalPositionalEmbedding,
)

from .cross_attention import refuse_cross_attention  # noqa: TID251 - beside this file in a checkpoint, too
from .plain_decoder import LayerDropParts, PlainModel  # noqa: TID251
from .transformers_api import CACHE_NAME  # noqa: TID251


class XGLMBackboneLayer(XGLMDecoderLayer):
    """One layer of XGLM.

    Attributes:
        attention_class: made from (config, number of the layer), and called as the stock one.
    """

    attention_class: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        refuse_cross_attention(config)
        super().__init__(config, layer_idx)
        self.self_attn = self.attention_class(config, layer_idx)


class XGLMBackbone(LayerDropParts, PlainModel):
    """Embeddings, blocks and the last LayerNorm.

    Attributes:
        block_class: made from (config, number of the layer).
    """

    block_class: Any
    block_list, final_norm = "layers", "layer_norm"
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

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D], positions added."""
        cache, tokens = arguments[CACHE_NAME], inputs_embeds.shape[1]
        seen = 0 if cache is None else cache.get_seq_length()
        if torch.is_tensor(seen):  # of a static cache, and no graph grows a table by a tensor's number
            seen = cache.get_max_length() - tokens
        positions = self.embed_positions(arguments["position_ids"], seen)
        states = inputs_embeds + positions.to(inputs_embeds.device)
        return nn.functional.dropout(states, p=self.dropout, training=self.training)


__all__ = ["XGLMBackbone", "XGLMBackboneLayer"]
