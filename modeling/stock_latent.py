"""Stock decoders of transformers with latent attention in place of their own: all else is the family's.

A family's file says which stock classes its own stand for. Positions reach the attention in the place of the tables of
cosines and sines that the stock model makes for its blocks: a rotary key has frequencies of its own.
"""

from typing import Any

import torch
from torch import nn

from .latent_attention import LatentAttention, init_latent_attention  # noqa: TID251 - beside this file, too
from .replaced_parts import ReplacedParts, keep_stored_names  # noqa: TID251


class StockLatentAttention(LatentAttention):
    """Latent attention in a stock block."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx, dropout=float(getattr(config, "attention_dropout", None) or 0.0))


class Positions(nn.Module):
    """In the place of a stock model's rotary module: blocks get positions, not tables."""

    def forward(self, states: torch.Tensor, position_ids: torch.Tensor, *kind: Any) -> torch.Tensor:
        """[B, S, D] and positions [B or 1, S] -> the positions."""
        return position_ids


def _window(attention: Any) -> int | None:
    """Tell how many tokens back a token sees in a stock attention; some keep the number where all layers have it."""
    found: int | None = getattr(attention, "sliding_window", None) if getattr(attention, "is_sliding", True) else None
    return found


class StockLatentModel(ReplacedParts):
    """What a family's models have in front of the stock class that each of them is."""

    def _replace(self, parent: Any) -> None:
        if hasattr(parent, "rotary_emb"):
            parent.rotary_emb = Positions()
        windows = {name: _window(child) for name, child in parent.named_children()}
        super()._replace(parent)
        for name, child in parent.named_children():
            if isinstance(child, LatentAttention) and child.sliding_window is None:
                child.sliding_window = windows[name]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """As the stock class: transformers looks for experts in the text of the file that a class is in."""
        stock: Any = next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))
        return bool(stock._can_set_experts_implementation())

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)  # type: ignore[misc]  # of the stock class
        init_latent_attention(module)


__all__ = ["Positions", "StockLatentAttention", "StockLatentModel", "keep_stored_names"]
