"""Bloom whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import (
    BloomForCausalLM,
    BloomForSequenceClassification,
    BloomForTokenClassification,
    BloomModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bloom.modeling_bloom import BloomBlock, BloomMLP

from .configuration_bloom_gqa import BloomGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .own_masks import AlibiAttention  # noqa: TID251
from .plain_decoder import (  # noqa: TID251
    PlainBlock,
    PlainModel,
    PlainPreTrainedModel,
    plain_block_forward,
    plain_forward,
)
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


class BloomGQABlock(PlainBlock):
    """One layer: attention and MLP, each behind its LayerNorm, which add what comes in, or its norm."""

    forward = answers_like(BloomBlock.forward)(plain_block_forward)

    def __init__(self, config: BloomGQAConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attention = BloomGQAAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = BloomMLP(config)
        self.adds_normed = config.apply_residual_connection_post_layernorm

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attention(normed, normed if self.adds_normed else hidden_states, **arguments)
        normed = self.post_attention_layernorm(hidden_states)
        output: torch.Tensor = self.mlp(normed, normed if self.adds_normed else hidden_states)
        return output


class BloomGQAPreTrainedModel(PlainPreTrainedModel):
    """What the classes below declare to transformers; engines with an attention of their own know of no slopes here."""

    config_class: Any = BloomGQAConfig
    base_model_prefix = "transformer"
    _supports_attention_backend = False
    _supports_flash_attn = False
    _supports_flex_attn = False
    _no_split_modules: Any = ["BloomGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": BloomGQABlock, "attentions": BloomGQAAttention}  # noqa: RUF012


class BloomGQAModel(BloomGQAPreTrainedModel, PlainModel, BloomModel):
    """Embeddings with a LayerNorm, blocks and the last LayerNorm."""

    forward = answers_like(BloomModel.forward)(plain_forward)
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def build(self, config: BloomGQAConfig) -> None:
        """Make the modules."""
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.h = nn.ModuleList([BloomGQABlock(config, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks."""
        return self.h

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        states: torch.Tensor = self.word_embeddings_layernorm(inputs_embeds)
        return states

    def last_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed: torch.Tensor = self.ln_f(hidden_states)
        return normed


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
