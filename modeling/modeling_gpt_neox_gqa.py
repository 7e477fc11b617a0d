"""GPT-NeoX (Pythia) whose query heads share key and value heads in groups; all but the attention is transformers' own.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
)
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXLayer, apply_rotary_pos_emb

from .configuration_gpt_neox_gqa import GPTNeoXGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .shared_heads import SharedHeadsAttention, SharedHeadsModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPTNeoXGQAAttention(SharedHeadsAttention, GPTNeoXAttention):  # type: ignore[misc]  # forward, by keyword
    """`query_key_value` makes, group by group, its query heads, its key head and its value head."""

    def __init__(self, config: GPTNeoXGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = config.attention_dropout
        rows = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=config.attention_bias)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        return self.grouped(self.query_key_value(hidden_states))

    def turn(
        self, query: torch.Tensor, key: torch.Tensor, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn query [B, H, S, d] and key [B, G, S, d] by the model's tables."""
        cos, sin = arguments.pop("position_embeddings")
        turned: tuple[torch.Tensor, torch.Tensor] = apply_rotary_pos_emb(query, key, cos, sin)
        return turned

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.dense(attended)
        return projected


class GPTNeoXGQAPreTrainedModel(SharedHeadsModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = GPTNeoXGQAConfig
    _can_record_outputs: Any = {"hidden_states": GPTNeoXLayer, "attentions": GPTNeoXGQAAttention}  # noqa: RUF012


class GPTNeoXGQAModel(GPTNeoXGQAPreTrainedModel, GPTNeoXModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(GPTNeoXModel.forward)(GPTNeoXModel.forward)


class GPTNeoXGQAForCausalLM(GPTNeoXGQAPreTrainedModel, GPTNeoXForCausalLM):
    """The language model."""

    forward = answers_like(GPTNeoXForCausalLM.forward)(GPTNeoXForCausalLM.forward)


class GPTNeoXGQAForSequenceClassification(GPTNeoXGQAPreTrainedModel, GPTNeoXForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPTNeoXForSequenceClassification.forward)(GPTNeoXForSequenceClassification.forward)


class GPTNeoXGQAForTokenClassification(GPTNeoXGQAPreTrainedModel, GPTNeoXForTokenClassification):
    """One label for each token."""

    forward = answers_like(GPTNeoXForTokenClassification.forward)(GPTNeoXForTokenClassification.forward)


class GPTNeoXGQAForQuestionAnswering(GPTNeoXGQAPreTrainedModel, GPTNeoXForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    forward = answers_like(GPTNeoXForQuestionAnswering.forward)(GPTNeoXForQuestionAnswering.forward)


GPTNeoXGQAPreTrainedModel.stands_for = {GPTNeoXAttention: GPTNeoXGQAAttention, GPTNeoXModel: GPTNeoXGQAModel}
for _own in ("GPTNeoXGQAForCausalLM", "GPTNeoXGQAModel"):  # engines ask the base model what tensors are called
    keep_stored_names(_own, "GPTNeoXForCausalLM")

__all__ = [
    "GPTNeoXGQAForCausalLM",
    "GPTNeoXGQAForQuestionAnswering",
    "GPTNeoXGQAForSequenceClassification",
    "GPTNeoXGQAForTokenClassification",
    "GPTNeoXGQAModel",
]
