"""mT5 whose decoder's query heads share key and value heads in groups: see seq2seq_heads.py."""

from typing import Any

from transformers import MT5ForConditionalGeneration, MT5Model
from transformers.models.mt5.modeling_mt5 import MT5Attention

from .configuration_mt5_gqa import MT5GQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .seq2seq_heads import BiasedAttention, GroupedDecoder  # noqa: TID251


class MT5GQAAttention(BiasedAttention, MT5Attention):
    """Attention of a decoder block, on its own tokens or on the encoder's."""


class MT5GQAPreTrainedModel(GroupedDecoder):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = MT5GQAConfig
    stands_for: Any = {MT5Attention: MT5GQAAttention}  # noqa: RUF012
    _supports_flex_attn = False  # which takes no bias in the place of a mask


class MT5GQAModel(MT5GQAPreTrainedModel, MT5Model):
    """Encoder and decoder."""


class MT5GQAForConditionalGeneration(MT5GQAPreTrainedModel, MT5ForConditionalGeneration):
    """The model with its language-modelling head."""


__all__ = ["MT5GQAForConditionalGeneration", "MT5GQAModel"]
