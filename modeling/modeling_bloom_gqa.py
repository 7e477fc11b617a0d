"""Bloom whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    BloomForCausalLM,
    BloomForSequenceClassification,
    BloomForTokenClassification,
    BloomModel,
)
from transformers.models.bloom.modeling_bloom import BloomBlock

from .bloom_decoder import (  # noqa: TID251 - beside this file in a checkpoint, too
    BloomBackbone,
    BloomBackboneBlock,
    BloomBackbonePreTrainedModel,
)
from .configuration_bloom_gqa import BloomGQAConfig  # noqa: TID251
from .own_masks import AlibiAttention  # noqa: TID251
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead, SequenceHead, TokenHead  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class BloomGQAAttention(AlibiAttention):
    """`query_key_value` makes, group by group, its query heads, its key head and its value head.

    As in Bloom it adds what it is given beside the states.
    """

    def __init__(self, config: BloomGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = float(config.attention_dropout)
        rows = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.hidden_dropout = nn.Dropout(float(config.hidden_dropout))

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        return self.grouped(self.query_key_value(hidden_states))

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.hidden_dropout(self.dense(attended))
        return projected

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] and what is added, [B, S, D] -> [B, S, D] and, from functions that have them, the weights."""
        attended, weights = super().forward(hidden_states, **kwargs)
        return attended if residual is None else residual + attended, weights


class BloomGQABlock(BloomBackboneBlock):
    """One layer with this attention, which adds what comes in by itself."""

    forward = answers_like(BloomBlock.forward)(plain_block_forward)
    attention_class = BloomGQAAttention

    def attend(self, normed: torch.Tensor, residual: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] and what is added, [B, S, D] -> [B, S, D]."""
        output: torch.Tensor = self.self_attention(normed, residual, **arguments)[0]
        return output


class BloomGQAPreTrainedModel(BloomBackbonePreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = BloomGQAConfig
    _no_split_modules: Any = ["BloomGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": BloomGQABlock, "attentions": BloomGQAAttention}  # noqa: RUF012


class BloomGQAModel(BloomGQAPreTrainedModel, BloomBackbone, BloomModel):
    """Embeddings with a LayerNorm, blocks and the last LayerNorm."""

    block_class = BloomGQABlock
    forward = answers_like(BloomModel.forward)(plain_forward)


BloomGQAPreTrainedModel.base_class = BloomGQAModel


class BloomGQAForCausalLM(LanguageHead, BloomGQAPreTrainedModel, BloomForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(BloomForCausalLM.forward)(BloomForCausalLM.forward)


class BloomGQAForSequenceClassification(SequenceHead, BloomGQAPreTrainedModel, BloomForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(BloomForSequenceClassification.forward)(BloomForSequenceClassification.forward)


class BloomGQAForTokenClassification(TokenHead, BloomGQAPreTrainedModel, BloomForTokenClassification):
    """One label for each token."""

    forward = answers_like(BloomForTokenClassification.forward)(BloomForTokenClassification.forward)


__all__ = [
    "BloomGQAForCausalLM",
    "BloomGQAForSequenceClassification",
    "BloomGQAForTokenClassification",
    "BloomGQAModel",
]
