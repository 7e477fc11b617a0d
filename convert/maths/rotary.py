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
class RotaryPlanes:
    """The rotation of one head.

    Attributes:
        inv_freq: [P] radians per position of each plane, 0 where a plane does not turn.
    """

    inv_freq: Tensor

    @property
    def num_planes(self) -> int:
        """P = d / 2."""
        return self.inv_freq.shape[0]

    def nearest(self, frequencies: tuple[float, ...]) -> list[tuple[int, int]]:
        """For each of some frequencies the plane that turns most nearly as fast, and how often it was taken before."""
        own = self.inv_freq.to(torch.float64).clamp_min(1e-9).log()
        taken = [0] * self.num_planes
        pairs = []
        for frequency in frequencies:
            plane = int((own - math.log(max(frequency, 1e-9))).abs().argmin())
            pairs.append((plane, taken[plane]))
            taken[plane] += 1
        return pairs


@dataclass(frozen=True)
class Offsets:
    """How far back attention looks: a distribution over offsets, in bins of consecutive ones.

    Attributes:
        distance: [N] middle of each bin in tokens.
        mass: [H, N], rows sum to one; even within a bin.
        width: [N] offsets in each bin.
    """

    distance: Tensor
    mass: Tensor
    width: Tensor


_SINGLE = 128  # offsets that have a bin each; fast planes turn several times within a wider one
_WIDE = 64  # bins for all that is further away, evenly spaced on a log scale


def _edges(context: int) -> Tensor:
    """[N + 1] where bins begin, and where the last one ends."""
    near = torch.arange(min(_SINGLE, context) + 1, dtype=torch.float64)
    if context <= _SINGLE:
        return near
    far = torch.logspace(math.log10(_SINGLE), math.log10(context), _WIDE + 1, dtype=torch.float64)
    edges: Tensor = torch.unique(torch.cat([near, far.round()]))
    return edges


def prior_offsets(num_heads: int, context: int) -> Offsets:
    """Give the guess without data: mass ~ 1 / (1 + offset) up to `context` tokens, the same for every head."""
    edges = _edges(max(context, 1))
    left, right = edges[:-1], edges[1:]
    # sum of 1 / (1 + t) over left <= t < right, by the digamma difference
    weight = torch.digamma(right + 1) - torch.digamma(left + 1)
    mass = (weight / weight.sum()).expand(num_heads, -1).contiguous()
    return Offsets((left + right - 1) / 2, mass, right - left)


def measured_offsets(histogram: Tensor, context: int, floor: float) -> Offsets:
    """Tell what heads were seen to attend to, and a little of the prior for what the text was too short to show.

    Args:
        histogram: [H, T] attention mass at each offset below T.
        context: offsets up to here get some of the prior.
        floor: the prior's share.
    """
    prior = prior_offsets(histogram.shape[0], max(context, histogram.shape[1]))
    edges = torch.cat([prior.distance - (prior.width - 1) / 2, torch.tensor([math.inf], dtype=torch.float64)])
    offsets = torch.arange(histogram.shape[1], dtype=torch.float64)
    bins = torch.searchsorted(edges, offsets, right=True) - 1
    seen = torch.zeros_like(prior.mass).index_add_(1, bins, histogram.to(torch.float64))
    total = seen.sum(1, keepdim=True)
    seen = torch.where(total > 0, seen / total.clamp_min(1e-200), prior.mass)
    return Offsets(prior.distance, (1 - floor) * seen + floor * prior.mass, prior.width)


def characteristic(offsets: Offsets, omega: Tensor) -> Tensor:
    """E[exp(i omega offset)] under each head's offsets.

    Args:
        omega: [...] angular frequencies.

    Returns:
        complex [H, ...].
    """
    turns = omega.flatten()[:, None]
    phase = offsets.distance * turns
    waves = torch.polar(_within_bin(offsets.width, turns), phase)  # [F, N]
    return (offsets.mass.to(waves.dtype) @ waves.T).reshape(-1, *omega.shape)


def _within_bin(width: Tensor, omega: Tensor) -> Tensor:
    """The mean of exp(i omega (t - middle)) over a bin's offsets t, real by symmetry: sin(w o/2) / (w sin(o/2))."""
    below = width * (omega / 2).sin()
    flat = below.abs() < 1e-9  # a frequency of zero, or one turn per token
    return torch.where(flat, 1.0, (width * omega / 2).sin() / torch.where(flat, 1.0, below))


def to_planes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Give a real matrix [..., 2P, 2Q] as the complex pair (A, B) with z -> A z + B conj(z), each [..., P, Q].

    z = v[:Q] + i v[Q:]. In this form a rotation of either side is a multiplication by phases.
    """
    p, q = matrix.shape[-2] // 2, matrix.shape[-1] // 2
    m11, m12 = matrix[..., :p, :q], matrix[..., :p, q:]
    m21, m22 = matrix[..., p:, :q], matrix[..., p:, q:]
    linear = torch.complex(m11 + m22, m21 - m12) / 2
    conjugate = torch.complex(m11 - m22, m21 + m12) / 2
    return linear, conjugate


def from_planes(linear: Tensor, conjugate: Tensor) -> Tensor:
    """Give the inverse of `to_planes`: [..., 2P, 2Q]."""
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
    def of(cls, rotary: RotaryPlanes, offsets: Offsets) -> MeanConjugation:
        """Give the expectations of one layer."""
        theta = rotary.inv_freq.to(torch.float64)
        minus = characteristic(offsets, theta[:, None] - theta[None])
        return cls(minus, characteristic(offsets, theta[:, None] + theta[None]))

    def heads(self, index: Tensor) -> MeanConjugation:
        """Give the same for some heads, index [...] into H."""
        return MeanConjugation(self.minus[index], self.plus[index])

    def __call__(self, matrix: Tensor, *, inverse: bool = False) -> Tensor:
        """E[R X R^T] (or E[R^T X R] with `inverse`), [..., d, d]."""
        linear, conjugate = to_planes(matrix)
        minus, plus = (self.minus.conj(), self.plus.conj()) if inverse else (self.minus, self.plus)
        return from_planes(linear * minus, conjugate * plus)
