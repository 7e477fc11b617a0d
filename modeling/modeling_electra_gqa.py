"""ELECTRA whose query heads share key and value heads in groups (GQA; MQA is one group); see encoder_heads.py."""

from transformers import (
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
    ElectraPreTrainedModel,
)
from transformers.models.electra.modeling_electra import ElectraSelfAttention

from .configuration_electra_gqa import ElectraGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .encoder_heads import GroupedEncoder, GroupedHead, GroupedSelfAttention  # noqa: TID251


class ElectraGQASelfAttention(GroupedSelfAttention, ElectraSelfAttention):
    """Tokens that look at all tokens; query heads share key and value heads."""


class ElectraGQAPreTrainedModel(ElectraPreTrainedModel):
    """What differs from the stock class in what the classes below declare to transformers."""

    config_class = ElectraGQAConfig


class ElectraGQAModel(GroupedEncoder, ElectraGQAPreTrainedModel, ElectraModel):
    """Embeddings and blocks."""

    attention_class = ElectraGQASelfAttention


class ElectraGQAForMaskedLM(GroupedHead, ElectraGQAPreTrainedModel, ElectraForMaskedLM):
    """Words in the place of masked ones."""

    base_class = ElectraGQAModel


class ElectraGQAForPreTraining(GroupedHead, ElectraGQAPreTrainedModel, ElectraForPreTraining):
    """What the stock class is trained on first."""

    base_class = ElectraGQAModel


class ElectraGQAForSequenceClassification(GroupedHead, ElectraGQAPreTrainedModel, ElectraForSequenceClassification):
    """One label for a text."""

    base_class = ElectraGQAModel


class ElectraGQAForTokenClassification(GroupedHead, ElectraGQAPreTrainedModel, ElectraForTokenClassification):
    """One label for each token."""

    base_class = ElectraGQAModel


class ElectraGQAForQuestionAnswering(GroupedHead, ElectraGQAPreTrainedModel, ElectraForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    base_class = ElectraGQAModel


class ElectraGQAForMultipleChoice(GroupedHead, ElectraGQAPreTrainedModel, ElectraForMultipleChoice):
    """Which of several texts is chosen."""

    base_class = ElectraGQAModel


__all__ = [
    "ElectraGQAForMaskedLM",
    "ElectraGQAForMultipleChoice",
    "ElectraGQAForPreTraining",
    "ElectraGQAForQuestionAnswering",
    "ElectraGQAForSequenceClassification",
    "ElectraGQAForTokenClassification",
    "ElectraGQAModel",
    "ElectraGQAPreTrainedModel",
]
