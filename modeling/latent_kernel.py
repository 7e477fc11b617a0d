"""What a kernel for absorbed queries is: letters in shapes as in latent_attention.py.

applies(query, training, weights) -> bool
    query: [B, H, S, r + R].
    weights: whether the attention weights are asked for, too.
run(query, entries, *, mask, scaling, causal, dropout) -> weighted sums [B, H, S, r + R], weights [B, H, S, T] or None
    entries: [B, 1, T, r + R].
    mask: [B, 1 or H, S, T], added, or, where it is boolean, what may be seen; None: all of it.
    causal: S == T, no mask, and a token sees those before it.
    dropout: share of the weights that is dropped, 0 outside training.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

Mixed = tuple[torch.Tensor, torch.Tensor | None]


class Shaping(NamedTuple):
    """What becomes of scores besides their scale: the plain kernel's alone.

    softcap: the size c that scores stay below, as c tanh(score / c); None: any.
    sizes: [B, H, 1, T] what the score of a head and a key is multiplied by; None: 1.
    """

    softcap: float | None = None
    sizes: torch.Tensor | None = None

    def of(self, scores: torch.Tensor) -> torch.Tensor:
        """[B, H, S, T], multiplied by the scale -> the same."""
        if self.sizes is not None:
            scores = scores * self.sizes
        return scores if self.softcap is None else (scores / self.softcap).tanh() * self.softcap


class Kernel(NamedTuple):
    """One way to mix the entries of a latent cache."""

    applies: Callable[[torch.Tensor, bool, bool], bool]
    run: Callable[..., Mixed]


__all__ = ["Kernel", "Mixed", "Shaping"]
