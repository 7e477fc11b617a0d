"""RoBERTa whose query heads share key and value heads in groups (GQA; MQA is one group); see encoder_heads.py."""

from transformers import (
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    RobertaPreTrainedModel,
)
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

from .configuration_roberta_gqa import RobertaGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .encoder_heads import GroupedEncoder, GroupedHead, GroupedSelfAttention  # noqa: TID251


class RobertaGQASelfAttention(GroupedSelfAttention, RobertaSelfAttention):
    """Tokens that look at all tokens; query heads share key and value heads."""


class RobertaGQAPreTrainedModel(RobertaPreTrainedModel):
    """What differs from the stock class in what the classes below declare to transformers."""

    config_class = RobertaGQAConfig


class RobertaGQAModel(GroupedEncoder, RobertaGQAPreTrainedModel, RobertaModel):
    """Embeddings and blocks."""

    attention_class = RobertaGQASelfAttention


class RobertaGQAForMaskedLM(GroupedHead, RobertaGQAPreTrainedModel, RobertaForMaskedLM):
    """Words in the place of masked ones."""

    base_class = RobertaGQAModel


class RobertaGQAForSequenceClassification(GroupedHead, RobertaGQAPreTrainedModel, RobertaForSequenceClassification):
    """One label for a text."""

    base_class = RobertaGQAModel


class RobertaGQAForTokenClassification(GroupedHead, RobertaGQAPreTrainedModel, RobertaForTokenClassification):
    """One label for each token."""

    base_class = RobertaGQAModel


class RobertaGQAForQuestionAnswering(GroupedHead, RobertaGQAPreTrainedModel, RobertaForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    base_class = RobertaGQAModel


class RobertaGQAForMultipleChoice(GroupedHead, RobertaGQAPreTrainedModel, RobertaForMultipleChoice):
    """Which of several texts is chosen."""

    base_class = RobertaGQAModel


__all__ = [
    "RobertaGQAForMaskedLM",
    "RobertaGQAForMultipleChoice",
    "RobertaGQAForQuestionAnswering",
    "RobertaGQAForSequenceClassification",
    "RobertaGQAForTokenClassification",
    "RobertaGQAModel",
    "RobertaGQAPreTrainedModel",
]
