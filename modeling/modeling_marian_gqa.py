"""Marian whose decoder's query heads share key and value heads in groups: see seq2seq_heads.py."""

from typing import Any

from transformers import MarianModel, MarianMTModel
from transformers.models.marian.modeling_marian import MarianAttention

from .configuration_marian_gqa import MarianGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .seq2seq_heads import GroupedDecoder, ScaledAttention  # noqa: TID251


class MarianGQAAttention(ScaledAttention, MarianAttention):
    """Attention of a decoder block, on its own tokens or on the encoder's."""


class MarianGQAPreTrainedModel(GroupedDecoder):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = MarianGQAConfig
    stands_for: Any = {MarianAttention: MarianGQAAttention}  # noqa: RUF012


class MarianGQAModel(MarianGQAPreTrainedModel, MarianModel):
    """Encoder and decoder."""


class MarianGQAForConditionalGeneration(MarianGQAPreTrainedModel, MarianMTModel):
    """The translator."""


__all__ = ["MarianGQAForConditionalGeneration", "MarianGQAModel"]
