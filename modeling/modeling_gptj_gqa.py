"""GPT-J whose query heads share key and value heads in groups; all but the attention has the names it had.

Letters in shapes are those of `shared_heads.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import GPTJForCausalLM, GPTJForSequenceClassification, GPTJModel
from transformers.models.gptj.modeling_gptj import GPTJMLP, GPTJBlock

from .configuration_gptj_gqa import GPTJGQAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .parallel_rotary import ParallelBlock, ParallelModel, turn_pairs  # noqa: TID251
from .plain_decoder import PlainPreTrainedModel, plain_block_forward, plain_forward  # noqa: TID251
from .shared_heads import SeparateAttention  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPTJGQAAttention(SeparateAttention):
    """Three projections without biases; `k_proj` and `v_proj` make G heads."""

    reorder_and_upcast_attn = True  # scores in float32, as GPT-J has them

    def __init__(self, config: GPTJGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout_share = config.attn_pdrop
        self.make_projections(bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

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


class GPTJGQABlock(ParallelBlock):
    """One layer of GPT-J with this attention."""

    forward = answers_like(GPTJBlock.forward)(plain_block_forward)
    attention_class = GPTJGQAAttention
    mlp_class = GPTJMLP


class GPTJGQAPreTrainedModel(PlainPreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = GPTJGQAConfig
    base_model_prefix = "transformer"
    _no_split_modules: Any = ["GPTJGQABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": GPTJGQABlock, "attentions": GPTJGQAAttention}  # noqa: RUF012


class GPTJGQAModel(GPTJGQAPreTrainedModel, ParallelModel, GPTJModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = GPTJGQABlock
    forward = answers_like(GPTJModel.forward)(plain_forward)


GPTJGQAPreTrainedModel.base_class = GPTJGQAModel


class GPTJGQAForCausalLM(GPTJGQAPreTrainedModel, GPTJForCausalLM):
    """The language model; its head has a bias."""

    forward = answers_like(GPTJForCausalLM.forward)(GPTJForCausalLM.forward)

    def add_head(self, config: GPTJGQAConfig) -> None:
        """Make the head."""
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)


class GPTJGQAForSequenceClassification(GPTJGQAPreTrainedModel, GPTJForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPTJForSequenceClassification.forward)(GPTJForSequenceClassification.forward)

    def add_head(self, config: GPTJGQAConfig) -> None:
        """Make the head."""
        labels: Any = config.num_labels
        self.num_labels = labels
        self.score = nn.Linear(config.n_embd, labels, bias=False)


__all__ = ["GPTJGQAForCausalLM", "GPTJGQAForSequenceClassification", "GPTJGQAModel"]
