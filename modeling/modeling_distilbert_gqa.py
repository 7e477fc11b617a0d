"""DistilBERT whose query heads share key and value heads in groups (GQA; MQA is one group); see encoder_heads.py."""

from typing import Any

import torch
from transformers import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    DistilBertPreTrainedModel,
)
from transformers.models.distilbert.modeling_distilbert import DistilBertSelfAttention

from .configuration_distilbert_gqa import DistilBertGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .encoder_heads import GroupedEncoder, GroupedHead, GroupedSelfAttention  # noqa: TID251


class DistilBertGQASelfAttention(GroupedSelfAttention, DistilBertSelfAttention):
    """Tokens that look at all tokens; query heads share key and value heads."""

    projections = ("q_lin", "k_lin", "v_lin")

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Self-attention of [B, T, D] with its output projection, and its weights or None."""
        mixed, weights = self.mixed(hidden_states, attention_mask, kwargs)
        return self.out_lin(mixed), weights


class DistilBertGQAPreTrainedModel(DistilBertPreTrainedModel):
    """What differs from the stock class in what the classes below declare to transformers."""

    config_class = DistilBertGQAConfig


class DistilBertGQAModel(GroupedEncoder, DistilBertGQAPreTrainedModel, DistilBertModel):
    """Embeddings and blocks."""

    attention_class = DistilBertGQASelfAttention
    blocks = "transformer.layer"
    place = "attention"


class DistilBertGQAForMaskedLM(GroupedHead, DistilBertGQAPreTrainedModel, DistilBertForMaskedLM):
    """Words in the place of masked ones."""

    base_class = DistilBertGQAModel


class DistilBertGQAForSequenceClassification(
    GroupedHead, DistilBertGQAPreTrainedModel, DistilBertForSequenceClassification
):
    """One label for a text."""

    base_class = DistilBertGQAModel


class DistilBertGQAForTokenClassification(GroupedHead, DistilBertGQAPreTrainedModel, DistilBertForTokenClassification):
    """One label for each token."""

    base_class = DistilBertGQAModel


class DistilBertGQAForQuestionAnswering(GroupedHead, DistilBertGQAPreTrainedModel, DistilBertForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    base_class = DistilBertGQAModel


class DistilBertGQAForMultipleChoice(GroupedHead, DistilBertGQAPreTrainedModel, DistilBertForMultipleChoice):
    """Which of several texts is chosen."""

    base_class = DistilBertGQAModel


__all__ = [
    "DistilBertGQAForMaskedLM",
    "DistilBertGQAForMultipleChoice",
    "DistilBertGQAForQuestionAnswering",
    "DistilBertGQAForSequenceClassification",
    "DistilBertGQAForTokenClassification",
    "DistilBertGQAModel",
    "DistilBertGQAPreTrainedModel",
]
