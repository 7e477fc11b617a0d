"""XGLM whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import XGLMForCausalLM, XGLMModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.xglm.modeling_xglm import (
    XGLMDecoderLayer,
    XGLMScaledWordEmbedding,
    XGLMSinusoidalPositionalEmbedding,
)

from .configuration_xglm_gqa import XGLMGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .plain_decoder import PlainModel, PlainPreTrainedModel, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead  # noqa: TID251
from .shared_heads import SeparateAttention  # noqa: TID251
from .transformers_api import CACHE_NAME, answers_like  # noqa: TID251


class XGLMGQAAttention(SeparateAttention):
    """Three projections; `k_proj` and `v_proj` make G heads."""

    def __init__(self, config: XGLMGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = float(config.attention_dropout)
        self.make_projections(bias=True)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.out_proj(attended)
        return projected


class XGLMGQADecoderLayer(XGLMDecoderLayer):
    """One layer of XGLM with this attention."""

    def __init__(self, config: XGLMGQAConfig, layer_idx: int) -> None:
        if config.add_cross_attention:
            raise ValueError(f"{config.model_type} has no cross attention: set add_cross_attention=False")
        super().__init__(config, layer_idx)
        self.self_attn = XGLMGQAAttention(config, layer_idx)  # type: ignore[assignment]  # called in the same way


class XGLMGQAPreTrainedModel(PlainPreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = XGLMGQAConfig
    base_model_prefix = "model"
    _no_split_modules: Any = ["XGLMGQADecoderLayer"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": XGLMGQADecoderLayer, "attentions": XGLMGQAAttention}  # noqa: RUF012


class XGLMGQAModel(XGLMGQAPreTrainedModel, PlainModel, XGLMModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(XGLMModel.forward)(plain_forward)
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def build(self, config: XGLMGQAConfig) -> None:
        """Make the modules."""
        size: int = config.hidden_size
        padding: Any = config.pad_token_id
        scale = size**0.5 if config.scale_embedding else 1.0
        self.embed_tokens = XGLMScaledWordEmbedding(config.vocab_size, size, padding, embed_scale=scale)
        self.embed_positions = XGLMSinusoidalPositionalEmbedding(config.max_position_embeddings, size, padding)
        self.layers = nn.ModuleList([XGLMGQADecoderLayer(config, layer) for layer in range(config.num_layers)])
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


XGLMGQAPreTrainedModel.base_class = XGLMGQAModel


class XGLMGQAForCausalLM(LanguageHead, XGLMGQAPreTrainedModel, XGLMForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(XGLMForCausalLM.forward)(XGLMForCausalLM.forward)


__all__ = ["XGLMGQAForCausalLM", "XGLMGQAModel"]
