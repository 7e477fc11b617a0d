"""Falcon around an attention of another kind: everything else has the names it had.

Letters in shapes: B batch, S new tokens, T tokens held as keys, D hidden size, H query heads.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.falcon.modeling_falcon import FalconMLP

from .plain_decoder import PlainBlock, PlainModel, PlainPreTrainedModel  # noqa: TID251 - beside this file, too


def coarse_slopes(seen: torch.Tensor, slopes: torch.Tensor, scale: float) -> torch.Tensor:
    """Give what ALiBi adds to scores in Falcon, [1 or B, H, S, T], by places from the first token that is seen.

    Slopes, and their products with places, are rounded to bfloat16, and within what the scale multiplies.

    seen: [1 or B, 1, S, T] True where a token looks; slopes: [H].
    """
    first = seen.int().argmax(-1, keepdim=True)
    places = torch.arange(seen.shape[-1], device=seen.device) - first
    return (slopes.bfloat16()[:, None, None] * places).float() * scale


class FalconBackboneBlock(PlainBlock):
    """One layer: attention and MLP side by side, behind one LayerNorm or two, or one behind the other.

    Attributes:
        attention_class: made from (config, number of the layer).
    """

    attention_class: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, float(config.layer_norm_epsilon or 0.0)
        self.self_attention = self.attention_class(config, layer_idx)
        self.mlp = FalconMLP(config)
        new = bool(config.new_decoder_architecture)
        self.parallel = new or bool(config.parallel_attn)
        self.two_norms = new and config.num_ln_in_parallel_attn in (None, 2)
        if self.two_norms:
            self.ln_attn = nn.LayerNorm(size, eps=eps)
            self.ln_mlp = nn.LayerNorm(size, eps=eps)
        else:
            self.input_layernorm = nn.LayerNorm(size, eps=eps)
        if not self.parallel:
            self.post_attention_layernorm = nn.LayerNorm(size, eps=eps)
        self.attention_dropout = nn.Dropout(float(config.attention_dropout or 0.0))
        self.hidden_dropout = nn.Dropout(float(config.hidden_dropout or 0.0))

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed = (self.ln_attn if self.two_norms else self.input_layernorm)(hidden_states)
        attended, _ = self.self_attention(normed, **arguments)
        if not self.parallel:
            hidden_states = hidden_states + self.attention_dropout(attended)
            added = self.mlp(self.post_attention_layernorm(hidden_states))
        else:
            added = self.mlp(self.ln_mlp(hidden_states) if self.two_norms else normed) + attended
        output: torch.Tensor = hidden_states + self.hidden_dropout(added)
        return output


class FalconBackbonePreTrainedModel(PlainPreTrainedModel):
    """What differs from Falcon in what the classes of a family declare to transformers."""

    base_model_prefix = "transformer"


class FalconBackbone(PlainModel):
    """Embeddings, blocks and the last LayerNorm.

    Attributes:
        block_class: made from (config, number of the layer).
    """

    block_class: Any
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def build(self, config: Any) -> None:
        """Make the modules."""
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList([self.block_class(config, layer) for layer in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=float(config.layer_norm_epsilon or 0.0))
        self.gradient_checkpointing = False


__all__ = ["FalconBackbone", "FalconBackboneBlock", "FalconBackbonePreTrainedModel", "coarse_slopes"]
