"""MPT around an attention of another kind: everything else has the names it had.

Letters in shapes: B batch, S new tokens, D hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.mpt.modeling_mpt import MptMLP

from .plain_decoder import MaskedByItself, PlainBlock, PlainModel  # noqa: TID251 - beside this file, too


def _norm(config: Any) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=False)


class MptBackboneBlock(PlainBlock):
    """One layer: attention and MLP, each behind its LayerNorm and added to what came in.

    Attributes:
        attention_class: made from (config, number of the layer).
    """

    attention_class: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.norm_1 = _norm(config)
        self.attn = self.attention_class(config, layer_idx)
        self.norm_2 = _norm(config)
        self.ffn = MptMLP(config)
        self.resid_attn_dropout = nn.Dropout(float(config.attn_config.attn_pdrop))

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        attended, _ = self.attn(self.norm_1(hidden_states), **arguments)
        hidden_states = self.resid_attn_dropout(attended) + hidden_states
        output: torch.Tensor = self.ffn(self.norm_2(hidden_states), hidden_states)
        return output


class MptBackbonePreTrainedModel(MaskedByItself):
    """What differs from MPT in what the classes of a family declare to transformers."""

    base_model_prefix = "transformer"


class MptBackbone(PlainModel):
    """Embeddings, blocks and the last LayerNorm.

    Attributes:
        block_class: made from (config, number of the layer).
    """

    block_class: Any
    block_list, final_norm = "blocks", "norm_f"
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def build(self, config: Any) -> None:
        """Make the modules."""
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([self.block_class(config, layer) for layer in range(config.n_layers)])
        self.norm_f = _norm(config)
        self.gradient_checkpointing = False


__all__ = ["MptBackbone", "MptBackboneBlock", "MptBackbonePreTrainedModel"]
