"""Pegasus whose decoder's query heads share key and value heads in groups: see seq2seq_heads.py."""

from typing import Any

from transformers import PegasusForConditionalGeneration, PegasusModel
from transformers.models.pegasus.modeling_pegasus import PegasusAttention

from .configuration_pegasus_gqa import PegasusGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .seq2seq_heads import GroupedDecoder, ScaledAttention  # noqa: TID251


class PegasusGQAAttention(ScaledAttention, PegasusAttention):
    """Attention of a decoder block, on its own tokens or on the encoder's."""


class PegasusGQAPreTrainedModel(GroupedDecoder):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = PegasusGQAConfig
    stands_for: Any = {PegasusAttention: PegasusGQAAttention}  # noqa: RUF012


class PegasusGQAModel(PegasusGQAPreTrainedModel, PegasusModel):
    """Encoder and decoder."""


class PegasusGQAForConditionalGeneration(PegasusGQAPreTrainedModel, PegasusForConditionalGeneration):
    """The model with its language-modelling head."""


__all__ = ["PegasusGQAForConditionalGeneration", "PegasusGQAModel"]
