"""A projection of a converted layer that is solved for: what a change of it gives, and the transpose of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from convert_attn.convert.fitting.attention_sample import Tile
from convert_attn.convert.maths.products import product
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import turn
from convert_attn.convert.weights.head_norm import Factor, Slope
from convert_attn.convert.weights.latent import LatentWeights

Weights = AttentionWeights | LatentWeights


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A projection that is solved for.

    Attributes:
        names: of the weight's field and of its bias's ("" where it has none).
        weight: [n, e, M], the bias as one more column where there is one.
        columns: which numbers of a query or key it gives.
        turning: [e / 2] frequencies of its planes, None where it does not turn.
        metric: [M, M] second moments of what it reads.
        reads: batch -> [B, T, M].
        slope: batch -> the derivative of the norm that follows the projection, or what multiplies it; None without one.
    """

    names: tuple[str, str]
    weight: Tensor
    columns: slice
    turning: Tensor | None
    metric: Tensor
    reads: Callable[[int], Tensor]
    scale: float = 1.0
    slope: Callable[[int], Slope | Factor] | None = None

    def turned(self, states: Tensor, positions: Tensor | None = None) -> Tensor:
        """Give planes turned to their positions."""
        return states if self.turning is None else turn(states, self.turning, self.scale, positions)

    def turned_back(self, states: Tensor, positions: Tensor | None = None) -> Tensor:
        """Give the transpose of `turned`."""
        return states if self.turning is None else turn(states, -self.turning, self.scale, positions)

    def given(self, change: Tensor, batch: int, tile: Tile | None = None) -> Tensor:
        """Tell what a change [n, e, M] of the weight makes of a batch, or of a tile's queries: [B, n, T, e]."""
        rows = slice(None) if tile is None else tile.rows
        outputs = product(self.reads(batch)[:, rows], change.flatten(0, 1).T)
        states = outputs.unflatten(-1, change.shape[:2]).transpose(1, 2)
        if self.slope is not None:
            states = self.slope(batch).rows(rows).along(states)
        return self.turned(states, None if tile is None else tile.positions)

    def pulled(self, states: Tensor, batch: int, tile: Tile | None = None) -> Tensor:
        """Give the transpose of `given`: [B, n, T, e] -> [n, e, M]."""
        part = slice(None) if tile is None else tile.rows
        read = self.reads(batch)[:, part]
        back = self.turned_back(states, None if tile is None else tile.positions)
        if self.slope is not None:
            back = self.slope(batch).rows(part).back(back)
        rows = back.permute(1, 3, 0, 2).flatten(2).flatten(0, 1)  # [n e, B T]
        found: Tensor = product(rows, read.flatten(0, 1)).unflatten(0, (back.shape[1], back.shape[3]))
        return found

    def moved(self, weights: Weights, change: Tensor) -> Weights:
        """Give the weights with this part changed."""
        new = self.weight + change
        changed: dict[str, Any] = {}
        own = getattr(weights, self.names[0])
        if self.names[1]:
            bias = getattr(weights, self.names[1])
            changed[self.names[1]] = new[..., -1].reshape(bias.shape)
            new = new[..., :-1]
        changed[self.names[0]] = new.reshape(own.shape)
        return replace(weights, **changed)
