"""mBART whose decoder's query heads share key and value heads in groups: see seq2seq_heads.py."""

from typing import Any

from transformers import MBartForConditionalGeneration, MBartModel
from transformers.models.mbart.modeling_mbart import MBartAttention

from .configuration_mbart_gqa import MBartGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .seq2seq_heads import GroupedDecoder, ScaledAttention  # noqa: TID251


class MBartGQAAttention(ScaledAttention, MBartAttention):
    """Attention of a decoder block, on its own tokens or on the encoder's."""


class MBartGQAPreTrainedModel(GroupedDecoder):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = MBartGQAConfig
    stands_for: Any = {MBartAttention: MBartGQAAttention}  # noqa: RUF012


class MBartGQAModel(MBartGQAPreTrainedModel, MBartModel):
    """Encoder and decoder."""


class MBartGQAForConditionalGeneration(MBartGQAPreTrainedModel, MBartForConditionalGeneration):
    """The model with its language-modelling head."""


__all__ = ["MBartGQAForConditionalGeneration", "MBartGQAModel"]
