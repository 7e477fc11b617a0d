"""Nomic BERT whose query heads share key and value heads in groups (GQA; MQA is one group); see encoder_heads.py."""

from typing import Any

import torch
from transformers import (
    NomicBertForMaskedLM,
    NomicBertForSequenceClassification,
    NomicBertForTokenClassification,
    NomicBertModel,
    NomicBertPreTrainedModel,
)
from transformers.models.nomic_bert.modeling_nomic_bert import NomicBertAttention, apply_rotary_pos_emb

from .configuration_nomic_bert_gqa import NomicBertGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .encoder_heads import GroupedEncoder, GroupedHead, GroupedSelfAttention  # noqa: TID251
from .replaced_parts import keep_stored_names  # noqa: TID251


class NomicBertGQASelfAttention(GroupedSelfAttention, NomicBertAttention):
    """Tokens that look at all tokens and turn with their position; query heads share key and value heads."""

    projections = ("q_proj", "k_proj", "v_proj")

    @property
    def size_of_head(self) -> int:
        """The numbers of a head."""
        return int(self.head_dim)

    @property
    def dropped(self) -> float:
        """Which share of attention is dropped in training."""
        return float(self.attention_dropout)

    def turned(self, query: torch.Tensor, key: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn queries [B, H, T, d] and keys [B, G, T, d] by their positions."""
        cosine, sine = kwargs["position_embeddings"]
        query, key = apply_rotary_pos_emb(query, key, cosine, sine)
        return query, key

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Self-attention of [B, T, D] behind its output projection, and its weights or None."""
        output, weights = self.mixed(hidden_states, attention_mask, kwargs)
        return self.o_proj(output), weights


class NomicBertGQAPreTrainedModel(NomicBertPreTrainedModel):
    """What differs from the stock class in what the classes below declare to transformers."""

    config_class = NomicBertGQAConfig


class NomicBertGQAModel(GroupedEncoder, NomicBertGQAPreTrainedModel, NomicBertModel):
    """Embeddings and blocks."""

    attention_class = NomicBertGQASelfAttention
    blocks = "layers"
    place = "self_attn"


class NomicBertGQAForMaskedLM(GroupedHead, NomicBertGQAPreTrainedModel, NomicBertForMaskedLM):
    """Words in the place of masked ones."""

    base_class = NomicBertGQAModel


class NomicBertGQAForSequenceClassification(
    GroupedHead, NomicBertGQAPreTrainedModel, NomicBertForSequenceClassification
):
    """One label for a text."""

    base_class = NomicBertGQAModel


class NomicBertGQAForTokenClassification(GroupedHead, NomicBertGQAPreTrainedModel, NomicBertForTokenClassification):
    """One label for each token."""

    base_class = NomicBertGQAModel


# queries, keys and values are one tensor there, of three equal parts
keep_stored_names("nomic_bert_gqa", "nomic_bert", joined=False)

__all__ = [
    "NomicBertGQAForMaskedLM",
    "NomicBertGQAForSequenceClassification",
    "NomicBertGQAForTokenClassification",
    "NomicBertGQAModel",
    "NomicBertGQAPreTrainedModel",
]
