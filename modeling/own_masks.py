"""Attention that changes the mask of its model by itself, which functions that keep K and V elsewhere do not learn of.

Letters in shapes: B batch, H query heads, S new tokens, T tokens held as keys.
"""

from typing import Any

import torch

from .attention_names import attention_name  # noqa: TID251 - beside this file in a checkpoint, too
from .distance_masks import lessened, near, seen_by  # noqa: TID251
from .shared_heads import SharedHeadsAttention  # noqa: TID251
from .transformers_api import has_pages  # noqa: TID251

_KNOWN = ("eager", "sdpa")  # attention functions, which take any mask


class OwnMaskAttention(SharedHeadsAttention):
    """With a mask of its own."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] -> [B, S, D] and, from functions that have them, the weights [B, H, S, T]."""
        if has_pages(kwargs):
            raise ValueError("continuous batching masks tokens by itself, which this attention does too: use generate")
        if attention_name(self.config) not in _KNOWN:
            raise ValueError(
                f"attention function {self.config._attn_implementation!r} does not learn of the mask that this "
                f"attention has: use one of {', '.join(_KNOWN)}"
            )
        return super().forward(hidden_states, **kwargs)


class AlibiAttention(OwnMaskAttention):
    """Scores fall with the distance, at a slope of each query head's own (Press et al., arXiv:2108.12409)."""

    def mask(self, given: torch.Tensor | None, query: torch.Tensor, keys: int, arguments: dict[str, Any]) -> Any:
        """Add what scores lose: a boolean or additive mask [B, 1, S, T], or None -> additive [1 or B, H, S, T]."""
        seen, ahead = seen_by(given, query, keys)
        return lessened(given, query, self.lost(seen, ahead), seen)

    def lost(self, seen: torch.Tensor, ahead: torch.Tensor) -> torch.Tensor:
        """Give what is added to scores, [1 or B, H, S, T].

        seen: [1 or B, 1, S, T] True where a token looks; ahead: how far ahead of a token a key is, of the same shape.
        """
        return alibi_slopes(self.num_heads, ahead.device)[:, None, None] * ahead.clamp_max(0)


def alibi_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """Give the slopes [H] of the paper: powers of 2^(-8 / H), for other numbers those of two powers of two."""
    whole = 2 ** (heads.bit_length() - 1)
    first = torch.arange(1, whole + 1, device=device) * (-8 / whole)
    between = (torch.arange(heads - whole, device=device) * 2 + 1) * (-4 / whole)
    return torch.exp2(torch.cat([first, between]))


__all__ = ["AlibiAttention", "OwnMaskAttention", "alibi_slopes", "near", "seen_by"]
