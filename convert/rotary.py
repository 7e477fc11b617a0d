"""Rotary position embedding as planes that turn, and expectations over the offsets a head attends to.

A head's d dimensions are P = d / 2 planes in the half-split order of transformers: plane p is the pair
(p, p + P). A plane that does not turn (partial rotary) has frequency 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """The rotation of one head.

    Attributes:
        inv_freq: [P] radians per position of each plane, 0 where a plane does not turn.
    """

    inv_freq: Tensor

    @property
    def num_planes(self) -> int:
        """P = d / 2."""
        return self.inv_freq.shape[0]


@dataclass(frozen=True)
class Offsets:
    """How far back attention looks: a distribution over offsets.

    Attributes:
        distance: [N] offsets in tokens.
        mass: [H, N], rows sum to one.
    """

    distance: Tensor
    mass: Tensor


def prior_offsets(num_heads: int, context: int, bins: int = 64) -> Offsets:
    """The guess without data: mass ~ 1 / (1 + offset) up to `context` tokens, the same for every head.

    Offsets up to 32 have a bin each; further out `bins` log-spaced bins stand for the ranges between them.
    """
    near = torch.arange(min(32, context), dtype=torch.float64)
    edges = near
    if context > 32:
        far = torch.logspace(math.log10(32), math.log10(context), bins + 1, dtype=torch.float64)
        edges = torch.unique(torch.cat([near, far.round()]))
    right = torch.cat([edges[1:], torch.tensor([float(max(context, 1))], dtype=torch.float64)])
    # sum of 1 / (1 + t) over left <= t < right, by the digamma difference; the bin acts at its mean offset
    weight = torch.digamma(right + 1) - torch.digamma(edges + 1)
    centre = (right - edges) / weight.clamp_min(1e-12) - 1  # E[t] under 1 / (1 + t): (count - weight) / weight
    keep = right > edges
    mass = weight[keep] / weight[keep].sum()
    return Offsets(centre[keep], mass.expand(num_heads, -1).contiguous())


def characteristic(offsets: Offsets, omega: Tensor) -> Tensor:
    """E[exp(i omega offset)] under each head's offsets.

    Args:
        omega: [...] angular frequencies.

    Returns:
        complex [H, ...].
    """
    phase = offsets.distance * omega.flatten()[:, None]
    waves = torch.polar(torch.ones_like(phase), phase)  # [F, N]
    return (offsets.mass.to(waves.dtype) @ waves.T).reshape(-1, *omega.shape)


def to_planes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A real matrix [..., 2P, 2Q] as the complex pair (A, B) with z -> A z + B conj(z), each [..., P, Q].

    z = v[:Q] + i v[Q:]. In this form a rotation of either side is a multiplication by phases.
    """
    p, q = matrix.shape[-2] // 2, matrix.shape[-1] // 2
    m11, m12 = matrix[..., :p, :q], matrix[..., :p, q:]
    m21, m22 = matrix[..., p:, :q], matrix[..., p:, q:]
    linear = torch.complex(m11 + m22, m21 - m12) / 2
    conjugate = torch.complex(m11 - m22, m21 + m12) / 2
    return linear, conjugate


def from_planes(linear: Tensor, conjugate: Tensor) -> Tensor:
    """The inverse of `to_planes`: [..., 2P, 2Q]."""
    total, difference = linear + conjugate, linear - conjugate
    top = torch.cat([total.real, -difference.imag], -1)
    bottom = torch.cat([total.imag, difference.real], -1)
    return torch.cat([top, bottom], -2)


@dataclass(frozen=True)
class MeanConjugation:
    """E[R_D X R_D^T] over offsets D, per head, for any X [H, d, d]; `inverse` turns the other way.

    The two sides may turn with frequencies of their own; then X is [H, d, d'].

    Attributes:
        minus: complex [H, P, P], E[exp(i D (theta_p - theta_q))].
        plus: complex [H, P, P], E[exp(i D (theta_p + theta_q))].
    """

    minus: Tensor
    plus: Tensor

    @classmethod
    def of(cls, rotary: Rotary, offsets: Offsets) -> MeanConjugation:
        """The expectations of one layer."""
        theta = rotary.inv_freq.to(torch.float64)
        minus = characteristic(offsets, theta[:, None] - theta[None])
        return cls(minus, characteristic(offsets, theta[:, None] + theta[None]))

    def heads(self, index: Tensor) -> MeanConjugation:
        """The same for some heads, index [...] into H."""
        return MeanConjugation(self.minus[index], self.plus[index])

    def __call__(self, matrix: Tensor, *, inverse: bool = False) -> Tensor:
        """E[R X R^T] (or E[R^T X R] with `inverse`), [..., d, d]."""
        linear, conjugate = to_planes(matrix)
        minus, plus = (self.minus.conj(), self.plus.conj()) if inverse else (self.minus, self.plus)
        return from_planes(linear * minus, conjugate * plus)
