"""Whisper whose decoder's query heads share key and value heads in groups: see seq2seq_heads.py."""

from typing import Any

from transformers import WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperAttention

from .configuration_whisper_gqa import WhisperGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .seq2seq_heads import GroupedDecoder, ScaledAttention  # noqa: TID251


class WhisperGQAAttention(ScaledAttention, WhisperAttention):
    """Attention of a decoder block, on its own tokens or on the encoder's."""


class WhisperGQAPreTrainedModel(GroupedDecoder):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = WhisperGQAConfig
    stands_for: Any = {WhisperAttention: WhisperGQAAttention}  # noqa: RUF012


class WhisperGQAModel(WhisperGQAPreTrainedModel, WhisperModel):
    """Encoder and decoder."""


class WhisperGQAForConditionalGeneration(WhisperGQAPreTrainedModel, WhisperForConditionalGeneration):
    """Speech as text."""


__all__ = ["WhisperGQAForConditionalGeneration", "WhisperGQAModel"]
