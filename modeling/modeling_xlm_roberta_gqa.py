"""XLM-RoBERTa whose query heads share key and value heads in groups (GQA; MQA is one group); see encoder_heads.py."""

from transformers import (
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
    XLMRobertaPreTrainedModel,
)
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaSelfAttention

from .configuration_xlm_roberta_gqa import XLMRobertaGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .encoder_heads import GroupedEncoder, GroupedHead, GroupedSelfAttention  # noqa: TID251


class XLMRobertaGQASelfAttention(GroupedSelfAttention, XLMRobertaSelfAttention):
    """Tokens that look at all tokens; query heads share key and value heads."""


class XLMRobertaGQAPreTrainedModel(XLMRobertaPreTrainedModel):
    """What differs from the stock class in what the classes below declare to transformers."""

    config_class = XLMRobertaGQAConfig


class XLMRobertaGQAModel(GroupedEncoder, XLMRobertaGQAPreTrainedModel, XLMRobertaModel):
    """Embeddings and blocks."""

    attention_class = XLMRobertaGQASelfAttention


class XLMRobertaGQAForMaskedLM(GroupedHead, XLMRobertaGQAPreTrainedModel, XLMRobertaForMaskedLM):
    """Words in the place of masked ones."""

    base_class = XLMRobertaGQAModel


class XLMRobertaGQAForSequenceClassification(
    GroupedHead, XLMRobertaGQAPreTrainedModel, XLMRobertaForSequenceClassification
):
    """One label for a text."""

    base_class = XLMRobertaGQAModel


class XLMRobertaGQAForTokenClassification(GroupedHead, XLMRobertaGQAPreTrainedModel, XLMRobertaForTokenClassification):
    """One label for each token."""

    base_class = XLMRobertaGQAModel


class XLMRobertaGQAForQuestionAnswering(GroupedHead, XLMRobertaGQAPreTrainedModel, XLMRobertaForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    base_class = XLMRobertaGQAModel


class XLMRobertaGQAForMultipleChoice(GroupedHead, XLMRobertaGQAPreTrainedModel, XLMRobertaForMultipleChoice):
    """Which of several texts is chosen."""

    base_class = XLMRobertaGQAModel


__all__ = [
    "XLMRobertaGQAForMaskedLM",
    "XLMRobertaGQAForMultipleChoice",
    "XLMRobertaGQAForQuestionAnswering",
    "XLMRobertaGQAForSequenceClassification",
    "XLMRobertaGQAForTokenClassification",
    "XLMRobertaGQAModel",
    "XLMRobertaGQAPreTrainedModel",
]
