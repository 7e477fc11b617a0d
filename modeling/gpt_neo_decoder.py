"""GPT-Neo around an attention of another kind: everything else has the names it had.

Letters in shapes: B batch, S new tokens, D hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoMLP

from .plain_decoder import MaskedByItself, PlainBlock, PlainModel  # noqa: TID251 - beside this file, too


class GPTNeoBackboneBlock(PlainBlock):
    """One layer: attention and MLP, each behind its LayerNorm and added to what came in.

    Attributes:
        attention_class: made from (config, number of the layer).
    """

    attention_class: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        inner = 4 * config.hidden_size if config.intermediate_size is None else config.intermediate_size
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = nn.ModuleDict({"attention": self.attention_class(config, layer_idx)})
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = GPTNeoMLP(inner, config)

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        attended, _ = self.attn["attention"](self.ln_1(hidden_states), **arguments)
        hidden_states = attended + hidden_states
        output: torch.Tensor = hidden_states + self.mlp(self.ln_2(hidden_states))
        return output


class GPTNeoBackbonePreTrainedModel(MaskedByItself):
    """What differs from GPT-Neo in what the classes of a family declare to transformers."""

    base_model_prefix = "transformer"


class GPTNeoBackbone(PlainModel):
    """Embeddings, blocks and the last LayerNorm.

    Attributes:
        block_class: made from (config, number of the layer).
    """

    block_class: Any

    def build(self, config: Any) -> None:
        """Make the modules."""
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(float(config.embed_dropout))
        self.h = nn.ModuleList([self.block_class(config, layer) for layer in range(config.num_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D], positions added."""
        states = inputs_embeds + self.wpe(arguments["position_ids"])
        kinds = given["token_type_ids"]
        dropped: torch.Tensor = self.drop(states if kinds is None else states + self.wte(kinds))
        return dropped


__all__ = ["GPTNeoBackbone", "GPTNeoBackboneBlock", "GPTNeoBackbonePreTrainedModel"]
