"""umT5 whose decoder's query heads share key and value heads in groups: see seq2seq_heads.py."""

from typing import Any

import torch
from transformers import UMT5ForConditionalGeneration, UMT5Model
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from .configuration_umt5_gqa import UMT5GQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .seq2seq_heads import BiasedAttention, GroupedDecoder  # noqa: TID251


class UMT5GQAAttention(BiasedAttention, UMT5Attention):
    """Attention of a decoder block, on its own tokens or on the encoder's; every block has a table of its own."""

    def forward(  # type: ignore[override]  # of the stock class, not of its relatives
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] -> [B, S, D] and, from functions that have them, the weights [B, H, S, T]."""
        out, _, weights = self.attend(hidden_states, encoder_hidden_states, attention_mask, None, kwargs)
        return out, weights


class UMT5GQAPreTrainedModel(GroupedDecoder):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = UMT5GQAConfig
    stands_for: Any = {UMT5Attention: UMT5GQAAttention}  # noqa: RUF012
    _supports_flex_attn = False  # which takes no bias in the place of a mask


class UMT5GQAModel(UMT5GQAPreTrainedModel, UMT5Model):
    """Encoder and decoder."""


class UMT5GQAForConditionalGeneration(UMT5GQAPreTrainedModel, UMT5ForConditionalGeneration):
    """The model with its language-modelling head."""


__all__ = ["UMT5GQAForConditionalGeneration", "UMT5GQAModel"]
