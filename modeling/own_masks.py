"""Attention that changes the mask of its model by itself, which functions that keep K and V elsewhere do not learn of.

Letters in shapes: B batch, H query heads, S new tokens, T tokens held as keys.
"""

from typing import Any

import torch

from .distance_masks import near  # noqa: TID251 - beside this file in a checkpoint, too
from .shared_heads import SeparateAttention  # noqa: TID251
from .transformers_api import has_pages  # noqa: TID251


class OwnMaskAttention(SeparateAttention):
    """With three projections and a mask of its own."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] -> [B, S, D] and, from functions that have them, the weights [B, H, S, T]."""
        if has_pages(kwargs):
            raise ValueError("continuous batching masks tokens by itself, which this attention does too: use generate")
        return super().forward(hidden_states, **kwargs)


__all__ = ["OwnMaskAttention", "near"]
