"""BERT whose query heads share key and value heads in groups (GQA; MQA is one group); see encoder_heads.py."""

from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
)
from transformers.models.bert.modeling_bert import BertSelfAttention

from .configuration_bert_gqa import BertGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .encoder_heads import GroupedEncoder, GroupedHead, GroupedSelfAttention  # noqa: TID251


class BertGQASelfAttention(GroupedSelfAttention, BertSelfAttention):
    """Tokens that look at all tokens; query heads share key and value heads."""


class BertGQAPreTrainedModel(BertPreTrainedModel):
    """What differs from the stock class in what the classes below declare to transformers."""

    config_class = BertGQAConfig


class BertGQAModel(GroupedEncoder, BertGQAPreTrainedModel, BertModel):
    """Embeddings and blocks."""

    attention_class = BertGQASelfAttention


class BertGQAForMaskedLM(GroupedHead, BertGQAPreTrainedModel, BertForMaskedLM):
    """Words in the place of masked ones."""

    base_class = BertGQAModel


class BertGQAForPreTraining(GroupedHead, BertGQAPreTrainedModel, BertForPreTraining):
    """What the stock class is trained on first."""

    base_class = BertGQAModel


class BertGQAForSequenceClassification(GroupedHead, BertGQAPreTrainedModel, BertForSequenceClassification):
    """One label for a text."""

    base_class = BertGQAModel


class BertGQAForTokenClassification(GroupedHead, BertGQAPreTrainedModel, BertForTokenClassification):
    """One label for each token."""

    base_class = BertGQAModel


class BertGQAForQuestionAnswering(GroupedHead, BertGQAPreTrainedModel, BertForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    base_class = BertGQAModel


class BertGQAForMultipleChoice(GroupedHead, BertGQAPreTrainedModel, BertForMultipleChoice):
    """Which of several texts is chosen."""

    base_class = BertGQAModel


__all__ = [
    "BertGQAForMaskedLM",
    "BertGQAForMultipleChoice",
    "BertGQAForPreTraining",
    "BertGQAForQuestionAnswering",
    "BertGQAForSequenceClassification",
    "BertGQAForTokenClassification",
    "BertGQAModel",
    "BertGQAPreTrainedModel",
]
