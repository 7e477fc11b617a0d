"""CodeGen whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import CodeGenForCausalLM, CodeGenModel
from transformers.models.codegen.modeling_codegen import CodeGenBlock, CodeGenMLP

from .configuration_codegen_gqa import CodeGenGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .parallel_rotary import ParallelBlock, ParallelModel, turn_pairs  # noqa: TID251
from .plain_decoder import PlainPreTrainedModel, plain_block_forward, plain_forward  # noqa: TID251
from .shared_heads import SharedHeadsAttention  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class CodeGenGQAAttention(SharedHeadsAttention):
    """`qkv_proj` makes, shard by shard, query heads, value heads and key heads."""

    reorder_and_upcast_attn = True  # scores in float32, as CodeGen has them

    def __init__(self, config: CodeGenGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = config.attn_pdrop
        rows = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.qkv_proj = nn.Linear(config.n_embd, rows, bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S, D] -> query [B, H, S, d], key and value [B, G, S, d]."""
        shards = math.gcd(4, self.num_key_value_heads)  # four, as machines in CodeGen's training, where there are heads
        shared = self.num_key_value_heads // shards
        sizes = [self.num_heads // shards, shared, shared]
        parts = self.qkv_proj(hidden_states).unflatten(-1, (shards, sum(sizes), self.head_dim)).split(sizes, -2)
        query, value, key = (part.flatten(-3, -2).transpose(1, 2) for part in parts)
        return query, key, value

    def turn(
        self, query: torch.Tensor, key: torch.Tensor, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn query [B, H, S, d] and key [B, G, S, d] by the model's tables."""
        tables = arguments.pop("position_embeddings")
        return turn_pairs(query, tables), turn_pairs(key, tables)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, S, H d] -> [B, S, D]."""
        projected: torch.Tensor = self.resid_dropout(self.out_proj(attended))
        return projected


class CodeGenGQABlock(ParallelBlock):
    """One layer of CodeGen with this attention."""

    forward = answers_like(CodeGenBlock.forward)(plain_block_forward)
    attention_class = CodeGenGQAAttention
    mlp_class = CodeGenMLP


class CodeGenGQAPreTrainedModel(PlainPreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = CodeGenGQAConfig
    base_model_prefix = "transformer"
    _no_split_modules: Any = ["CodeGenGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": CodeGenGQABlock, "attentions": CodeGenGQAAttention}  # noqa: RUF012


class CodeGenGQAModel(CodeGenGQAPreTrainedModel, ParallelModel, CodeGenModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = CodeGenGQABlock
    forward = answers_like(CodeGenModel.forward)(plain_forward)


CodeGenGQAPreTrainedModel.base_class = CodeGenGQAModel


class CodeGenGQAForCausalLM(CodeGenGQAPreTrainedModel, CodeGenForCausalLM):
    """The language model; its head has a bias."""

    forward = answers_like(CodeGenForCausalLM.forward)(CodeGenForCausalLM.forward)

    def add_head(self, config: CodeGenGQAConfig) -> None:
        """Make the head."""
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)


__all__ = ["CodeGenGQAForCausalLM", "CodeGenGQAModel"]
