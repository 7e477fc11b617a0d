"""Attention that changes the mask of its model by itself, which functions that keep K and V elsewhere do not learn of.

Letters in shapes: B batch, H query heads, S new tokens, T tokens held as keys, d size of a head.
"""

from typing import Any

import torch

from .shared_heads import SeparateAttention  # noqa: TID251 - beside this file in a checkpoint, too
from .transformers_api import has_pages  # noqa: TID251


class OwnMaskAttention(SeparateAttention):
    """With three projections and a mask of its own."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] -> [B, S, D] and, from functions that have them, the weights [B, H, S, T]."""
        if has_pages(kwargs):
            raise ValueError("continuous batching masks tokens by itself, which this attention does too: use generate")
        return super().forward(hidden_states, **kwargs)


def near(given: torch.Tensor | None, query: torch.Tensor, keys: int, window: int) -> torch.Tensor:
    """Hide what lies further back than a window, and what comes later.

    given: a boolean or additive mask [B, 1, S, T], or None where a token sees all before it; query: [B, H, S, d];
    keys: T; window: how many tokens back a token sees, itself included.
    -> [1 or B, 1, S, T], of the given kind, additive for None.
    """
    tokens, places = query.shape[-2], torch.arange(keys, device=query.device)
    lowest = torch.finfo(query.dtype).min
    if given is None:
        # several tokens without a mask have nothing before them, one has all
        own = places[:tokens] if tokens > 1 else places[-1:]
        back = own[:, None] - places
        seen = (back >= 0) & (back < window)
        return torch.where(seen, 0.0, lowest).to(query.dtype)[None, None]
    open_to = given if given.dtype == torch.bool else given > lowest / 2
    own = (open_to * places).amax(-1, keepdim=True)  # a token is the last one that it sees
    inside = own - places < window
    return given & inside if given.dtype == torch.bool else given.masked_fill(~inside, lowest)


__all__ = ["OwnMaskAttention", "near"]
