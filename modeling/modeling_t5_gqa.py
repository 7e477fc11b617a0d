"""T5 whose decoder's query heads share key and value heads in groups: see seq2seq_heads.py."""

from typing import Any

from transformers import T5ForConditionalGeneration, T5Model
from transformers.models.t5.modeling_t5 import T5Attention

from .configuration_t5_gqa import T5GQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .seq2seq_heads import BiasedAttention, GroupedDecoder  # noqa: TID251


class T5GQAAttention(BiasedAttention, T5Attention):
    """Attention of a decoder block, on its own tokens or on the encoder's."""


class T5GQAPreTrainedModel(GroupedDecoder):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = T5GQAConfig
    stands_for: Any = {T5Attention: T5GQAAttention}  # noqa: RUF012
    _supports_flex_attn = False  # which takes no bias in the place of a mask


class T5GQAModel(T5GQAPreTrainedModel, T5Model):
    """Encoder and decoder."""


class T5GQAForConditionalGeneration(T5GQAPreTrainedModel, T5ForConditionalGeneration):
    """The model with its language-modelling head."""


__all__ = ["T5GQAForConditionalGeneration", "T5GQAModel"]
