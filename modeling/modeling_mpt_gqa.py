"""MPT whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    MptForCausalLM,
    MptForSequenceClassification,
    MptForTokenClassification,
    MptModel,
)
from transformers.models.mpt.modeling_mpt import MptBlock

from .configuration_mpt_gqa import MptGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .mpt_decoder import MptBackbone, MptBackboneBlock, MptBackbonePreTrainedModel  # noqa: TID251
from .own_masks import AlibiAttention  # noqa: TID251
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
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


class MptGQABlock(MptBackboneBlock):
    """One layer with this attention."""

    forward = answers_like(MptBlock.forward)(plain_block_forward)
    attention_class = MptGQAAttention


class MptGQAPreTrainedModel(MptBackbonePreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = MptGQAConfig
    _no_split_modules: Any = ["MptGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": MptGQABlock, "attentions": MptGQAAttention}  # noqa: RUF012


class MptGQAModel(MptGQAPreTrainedModel, MptBackbone, MptModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = MptGQABlock
    forward = answers_like(MptModel.forward)(plain_forward)


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
