"""MPT whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import (
    MptForCausalLM,
    MptForSequenceClassification,
    MptForTokenClassification,
    MptModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.mpt.modeling_mpt import MptBlock, MptMLP

from .configuration_mpt_gqa import MptGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
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


class MptGQAAttention(AlibiAttention):
    """`Wqkv` makes H query heads, then G key heads, then G value heads, cut off at a bound where the config has one."""

    def __init__(self, config: MptGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        own: Any = config.attn_config
        self.dropout_share = float(own.attn_pdrop)
        self.scaling = self.head_dim**-0.5 if own.softmax_scale is None else float(own.softmax_scale)
        self.bound = float(own.clip_qkv) if own.clip_qkv else None
        kv_rows = self.num_key_value_heads * self.head_dim
        self.split_sizes = [config.hidden_size, kv_rows, kv_rows]
        self.Wqkv = nn.Linear(config.hidden_size, sum(self.split_sizes), bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        rows = self.Wqkv(hidden_states)
        if self.bound is not None:
            rows = rows.clamp(-self.bound, self.bound)
        query, key, value = rows.split(self.split_sizes, dim=-1)
        groups = self.num_key_value_heads
        return self.heads(query, self.num_heads), self.heads(key, groups), self.heads(value, groups)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.out_proj(attended)
        return projected


def _norm(config: MptGQAConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=False)


class MptGQABlock(PlainBlock):
    """One layer: attention and MLP, each behind its LayerNorm and added to what came in."""

    forward = answers_like(MptBlock.forward)(plain_block_forward)

    def __init__(self, config: MptGQAConfig, layer_idx: int) -> None:
        super().__init__()
        own: Any = config.attn_config
        self.norm_1 = _norm(config)
        self.attn = MptGQAAttention(config, layer_idx)
        self.norm_2 = _norm(config)
        self.ffn = MptMLP(config)
        self.resid_attn_dropout = nn.Dropout(float(own.attn_pdrop))

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        attended, _ = self.attn(self.norm_1(hidden_states), **arguments)
        hidden_states = self.resid_attn_dropout(attended) + hidden_states
        output: torch.Tensor = self.ffn(self.norm_2(hidden_states), hidden_states)
        return output


class MptGQAPreTrainedModel(PlainPreTrainedModel):
    """What the classes below declare to transformers; engines with an attention of their own know of no slopes here."""

    config_class: Any = MptGQAConfig
    base_model_prefix = "transformer"
    _supports_attention_backend = False
    _supports_flash_attn = False
    _supports_flex_attn = False
    _no_split_modules: Any = ["MptGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": MptGQABlock, "attentions": MptGQAAttention}  # noqa: RUF012


class MptGQAModel(MptGQAPreTrainedModel, PlainModel, MptModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(MptModel.forward)(plain_forward)
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def build(self, config: MptGQAConfig) -> None:
        """Make the modules."""
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([MptGQABlock(config, layer) for layer in range(config.n_layers)])
        self.norm_f = _norm(config)
        self.gradient_checkpointing = False

    def decoder_blocks(self) -> Iterable[Any]:
        """Give the blocks."""
        return self.blocks

    def last_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed: torch.Tensor = self.norm_f(hidden_states)
        return normed


MptGQAPreTrainedModel.base_class = MptGQAModel


class MptGQAForCausalLM(LanguageHead, MptGQAPreTrainedModel, MptForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(MptForCausalLM.forward)(MptForCausalLM.forward)


class MptGQAForSequenceClassification(SequenceHead, MptGQAPreTrainedModel, MptForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(MptForSequenceClassification.forward)(MptForSequenceClassification.forward)


class MptGQAForTokenClassification(TokenHead, MptGQAPreTrainedModel, MptForTokenClassification):
    """One label for each token."""

    forward = answers_like(MptForTokenClassification.forward)(MptForTokenClassification.forward)


__all__ = [
    "MptGQAForCausalLM",
    "MptGQAForSequenceClassification",
    "MptGQAForTokenClassification",
    "MptGQAModel",
]
