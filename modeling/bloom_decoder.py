"""Bloom around an attention of another kind: everything else has the names it had.

Letters in shapes: B batch, S new tokens, D hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bloom.modeling_bloom import BloomMLP

from .plain_decoder import MaskedByItself, PlainBlock, PlainModel  # noqa: TID251 - beside this file, too


class BloomBackboneBlock(PlainBlock):
    """One layer: attention and MLP, each behind its LayerNorm, which add what comes in, or its norm.

    Attributes:
        attention_class: made from (config, number of the layer).
    """

    attention_class: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attention = self.attention_class(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = BloomMLP(config)
        self.adds_normed = config.apply_residual_connection_post_layernorm

    def attend(self, normed: torch.Tensor, residual: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """Give [B, S, D] what attention makes of the norm [B, S, D], added to the residual [B, S, D]."""
        attended, _ = self.self_attention(normed, **arguments)
        output: torch.Tensor = residual + attended
        return output

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed = self.input_layernorm(hidden_states)
        hidden_states = self.attend(normed, normed if self.adds_normed else hidden_states, arguments)
        normed = self.post_attention_layernorm(hidden_states)
        output: torch.Tensor = self.mlp(normed, normed if self.adds_normed else hidden_states)
        return output


class BloomBackbonePreTrainedModel(MaskedByItself):
    """What differs from Bloom in what the classes of a family declare to transformers."""

    base_model_prefix = "transformer"


class BloomBackbone(PlainModel):
    """Embeddings with a LayerNorm, blocks and the last LayerNorm.

    Attributes:
        block_class: made from (config, number of the layer).
    """

    block_class: Any
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def build(self, config: Any) -> None:
        """Make the modules."""
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.h = nn.ModuleList([self.block_class(config, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        states: torch.Tensor = self.word_embeddings_layernorm(inputs_embeds)
        return states


__all__ = ["BloomBackbone", "BloomBackboneBlock", "BloomBackbonePreTrainedModel"]
