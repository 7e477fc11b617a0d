"""GPTBigCode whose query heads share key and value heads in groups; all but the attention is transformers' own.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    GPTBigCodeForCausalLM,
    GPTBigCodeForSequenceClassification,
    GPTBigCodeForTokenClassification,
    GPTBigCodeModel,
)
from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeAttention, GPTBigCodeBlock

from .configuration_gpt_bigcode_gqa import GPTBigCodeGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .cross_attention import refuse_cross_attention  # noqa: TID251
from .shared_heads import SharedHeadsAttention, SharedHeadsModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPTBigCodeGQAAttention(SharedHeadsAttention, GPTBigCodeAttention):  # type: ignore[misc]  # forward, by keyword
    """`c_attn` makes, group by group, its query heads, its key head and its value head."""

    def __init__(self, config: GPTBigCodeGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        refuse_cross_attention(config)
        self.dropout_share = float(config.attn_pdrop)
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        rows = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.c_attn = nn.Linear(config.hidden_size, rows)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.resid_dropout = nn.Dropout(float(config.resid_pdrop))

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        return self.grouped(self.c_attn(hidden_states))

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.resid_dropout(self.c_proj(attended))
        return projected


class GPTBigCodeGQAPreTrainedModel(SharedHeadsModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = GPTBigCodeGQAConfig
    _can_record_outputs: Any = {"hidden_states": GPTBigCodeBlock, "attentions": GPTBigCodeGQAAttention}  # noqa: RUF012


class GPTBigCodeGQAModel(GPTBigCodeGQAPreTrainedModel, GPTBigCodeModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(GPTBigCodeModel.forward)(GPTBigCodeModel.forward)


class GPTBigCodeGQAForCausalLM(GPTBigCodeGQAPreTrainedModel, GPTBigCodeForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(GPTBigCodeForCausalLM.forward)(GPTBigCodeForCausalLM.forward)


class GPTBigCodeGQAForSequenceClassification(GPTBigCodeGQAPreTrainedModel, GPTBigCodeForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPTBigCodeForSequenceClassification.forward)(GPTBigCodeForSequenceClassification.forward)


class GPTBigCodeGQAForTokenClassification(GPTBigCodeGQAPreTrainedModel, GPTBigCodeForTokenClassification):
    """One label for each token."""

    forward = answers_like(GPTBigCodeForTokenClassification.forward)(GPTBigCodeForTokenClassification.forward)


GPTBigCodeGQAPreTrainedModel.stands_for = {
    GPTBigCodeAttention: GPTBigCodeGQAAttention,
    GPTBigCodeModel: GPTBigCodeGQAModel,
}

__all__ = [
    "GPTBigCodeGQAForCausalLM",
    "GPTBigCodeGQAForSequenceClassification",
    "GPTBigCodeGQAForTokenClassification",
    "GPTBigCodeGQAModel",
]
