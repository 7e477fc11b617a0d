"""What GPT-J and CodeGen share: attention and MLP side by side, and rotary planes of neighbouring numbers of a head.

Letters in shapes: B batch, S new tokens, D hidden size, P planes of a head that turn, d size of a head.
"""

from typing import Any

import torch
from torch import nn

from .plain_decoder import PlainBlock, PlainModel  # noqa: TID251 - beside this file in a checkpoint, too


def pair_tables(config: Any, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Make cosines and sines [B, S, P] of positions [B, S]; where the config has no rotary_dim, whole heads turn."""
    size = config.rotary_dim or config.head_dim
    steps = torch.arange(0, size, 2, dtype=torch.int64, device=position_ids.device)
    angles = position_ids[..., None].float() * (1.0 / (10000 ** (steps / size)))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turn_pairs(states: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn the first 2 P numbers of heads [B, n, S, d]."""
    cos, sin = (table.unsqueeze(1) for table in tables)
    turning, rest = states.split([2 * cos.shape[-1], states.shape[-1] - 2 * cos.shape[-1]], dim=-1)
    first, second = turning[..., ::2], turning[..., 1::2]
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([turned.flatten(-2), rest], dim=-1)


class ParallelBlock(PlainBlock):
    """Attention and MLP side by side, behind one LayerNorm.

    Attributes:
        attention_class: made from (config, number of the layer).
        mlp_class: the stock one, made from (inner size, config).
    """

    attention_class: Any
    mlp_class: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = self.attention_class(config, layer_idx)
        self.mlp = self.mlp_class(inner, config)

    def run(self, hidden_states: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        normed = self.ln_1(hidden_states)
        attended, _ = self.attn(normed, **arguments)
        output: torch.Tensor = attended + self.mlp(normed) + hidden_states
        return output


class ParallelModel(PlainModel):
    """Embeddings, blocks and the last LayerNorm.

    Attributes:
        block_class: made from (config, number of the layer).
    """

    block_class: Any

    def build(self, config: Any) -> None:
        """Make the modules."""
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([self.block_class(config, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False

    def tables(self, position_ids: torch.Tensor, dtype: torch.dtype) -> Any:
        """Make what blocks get of positions [B, S]: cosines and sines."""
        config: Any = self.config  # type: ignore[attr-defined]  # of the stock class
        return pair_tables(config, position_ids, dtype)

    def embed(self, inputs_embeds: torch.Tensor, given: dict[str, Any], arguments: dict[str, Any]) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]; blocks get tables of the positions."""
        arguments["position_embeddings"] = self.tables(arguments["position_ids"], inputs_embeds.dtype)
        kinds = given["token_type_ids"]
        states: torch.Tensor = self.drop(inputs_embeds if kinds is None else inputs_embeds + self.wte(kinds))
        return states


__all__ = ["ParallelBlock", "ParallelModel", "pair_tables", "turn_pairs"]
