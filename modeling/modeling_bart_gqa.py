"""BART whose decoder's query heads share key and value heads in groups: see seq2seq_heads.py."""

from typing import Any

from transformers import BartForConditionalGeneration, BartModel
from transformers.models.bart.modeling_bart import BartAttention

from .configuration_bart_gqa import BartGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .seq2seq_heads import GroupedDecoder, ScaledAttention  # noqa: TID251


class BartGQAAttention(ScaledAttention, BartAttention):
    """Attention of a decoder block, on its own tokens or on the encoder's."""


class BartGQAPreTrainedModel(GroupedDecoder):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = BartGQAConfig
    stands_for: Any = {BartAttention: BartGQAAttention}  # noqa: RUF012


class BartGQAModel(BartGQAPreTrainedModel, BartModel):
    """Encoder and decoder."""


class BartGQAForConditionalGeneration(BartGQAPreTrainedModel, BartForConditionalGeneration):
    """The model with its language-modelling head."""


__all__ = ["BartGQAForConditionalGeneration", "BartGQAModel"]
