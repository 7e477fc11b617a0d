"""Persimmon whose query heads share key and value heads in groups; all but the attention is transformers' own.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import PersimmonForCausalLM, PersimmonModel
from transformers.models.persimmon.modeling_persimmon import (
    PersimmonAttention,
    PersimmonDecoderLayer,
    apply_rotary_pos_emb,
)

from .configuration_persimmon_gqa import PersimmonGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .shared_heads import SharedHeadsAttention, SharedHeadsModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class PersimmonGQAAttention(SharedHeadsAttention, PersimmonAttention):
    """`query_key_value` makes, group by group, its query heads, its key head and its value head."""

    def __init__(self, config: PersimmonGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = config.attention_dropout
        rows = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.qk_layernorm = config.qk_layernorm
        if self.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)
            self.k_layernorm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        query, key, value = self.grouped(self.query_key_value(hidden_states))
        if self.qk_layernorm:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        return query, key, value

    def turn(
        self, query: torch.Tensor, key: torch.Tensor, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn the first dimensions of query [B, H, S, d] and key [B, G, S, d] by the model's tables."""
        cos, sin = arguments.pop("position_embeddings")
        first = cos.shape[-1]
        turned = apply_rotary_pos_emb(query[..., :first], key[..., :first], cos, sin)
        query, key = (
            torch.cat([front, whole[..., first:]], -1) for front, whole in zip(turned, (query, key), strict=True)
        )
        return query, key

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.dense(attended)
        return projected


class PersimmonGQAPreTrainedModel(SharedHeadsModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = PersimmonGQAConfig
    _can_record_outputs: Any = {"hidden_states": PersimmonDecoderLayer, "attentions": PersimmonGQAAttention}  # noqa: RUF012


class PersimmonGQAModel(PersimmonGQAPreTrainedModel, PersimmonModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(PersimmonModel.forward)(PersimmonModel.forward)


class PersimmonGQAForCausalLM(PersimmonGQAPreTrainedModel, PersimmonForCausalLM):
    """The language model."""

    forward = answers_like(PersimmonForCausalLM.forward)(PersimmonForCausalLM.forward)


PersimmonGQAPreTrainedModel.stands_for = {
    PersimmonAttention: PersimmonGQAAttention,
    PersimmonModel: PersimmonGQAModel,
}

__all__ = ["PersimmonGQAForCausalLM", "PersimmonGQAModel"]
