"""Keys that a norm follows: what heads can share without a map of their own.

Behind the norm a key is g * (W x) / s(x), g the norm's weight and s(x) the size of what it reads. A linear map of the
query undoes nothing of that, as the query has a norm of its own, so a group's key is a mean of its heads' in the space
before the norm, each divided by its typical size; what the norm then does to a mean, which is shorter than its parts,
one factor on the norm's weight makes good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.weights.head_norm import HeadNorm

_LEAST = 1e-30


@dataclass(frozen=True)
class NormedKeys:
    """A layer's keys, before their norm.

    Attributes:
        overlap: [K, K] E[k_i . k_j] of keys behind the norm, each token taken to be of its head's typical size.
        sizes: [K] typical sizes that the norm divides by.
    """

    overlap: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, gram: Tensor, gain: Tensor, norm: HeadNorm) -> NormedKeys:
        """Measure keys.

        Args:
            gram: [K, d, K, d] E[k k^T] before the norm.
            gain: [K, d] the norm's weight, as stored.
        """
        if norm.centred:
            for side in ((0, 1), (2, 3)):
                gram = gram - gram.mean(side if norm.together else side[1:], keepdim=True)
        squares = gram.diagonal(0, 0, 2).diagonal(0, 0, 1).mean(1)  # [K]
        if norm.together:
            squares = squares.mean().expand_as(squares)
        sizes = (squares + norm.eps).sqrt()
        weight = gain.to(torch.float64) + norm.offset
        own = torch.einsum("kala->kla", gram)
        overlap = torch.einsum("kla,ka,la->kl", own, weight, weight)
        return cls(overlap / sizes[:, None] / sizes, sizes)

    @property
    def energy(self) -> float:
        """What all keys weigh together."""
        return float(self.overlap.trace())

    def affinity(self) -> Tensor:
        """[K, K] how much two heads' keys point the same way: 1 on the diagonal, negative where they are opposed."""
        own = self.overlap.diagonal().clamp_min(_LEAST).sqrt()
        return self.overlap / own[:, None] / own

    def lost(self, heads: tuple[int, ...]) -> float:
        """Tell what the mean of these heads' keys leaves of them."""
        part = self.overlap[list(heads)][:, list(heads)]
        return max(float(part.trace() - part.sum() / len(heads)), 0.0)

    def mixing(self, heads: list[int], head_dim: int) -> Tensor:
        """[d, n, d] of the n heads' keys before the norm: their mean, each by its size, in the size of their mean."""
        sizes = self.sizes[heads]
        share = sizes.mean() / sizes.clamp_min(_LEAST) / len(heads)
        return torch.einsum("k,ab->akb", share, torch.eye(head_dim, dtype=share.dtype, device=share.device))

    def shrinkage(self, partition: list[tuple[int, ...]]) -> float:
        """Tell how long the groups' means are against their heads: 1 where the heads of every group are equal."""
        parts = [self.overlap[list(group)][:, list(group)] for group in partition]
        mean = sum(float(part.sum()) / len(part) for part in parts)
        return math.sqrt(max(mean, 0.0) / max(self.energy, _LEAST))
