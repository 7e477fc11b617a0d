"""Linear algebra of sharing: several heads replaced by d rows of which each head is a linear function.

Every shared row is a mixture of the heads' own rows, so all fitting happens in (n d) x (n d) Gram matrices
and never again in the hidden size. Everything here is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_RANK_TOLERANCE = 1e-12
_LEAST_DAMPING = 1e-9  # in float32: what a fit needs to be solved at all
# torch 2.13 with MKL, after torch.set_num_threads(2): batches of 160 x 160 come out of its LU with broken pivots
_ONE_BY_ONE = 128


def double(tensor: Tensor) -> Tensor:
    """In float64, where all fitting is done."""
    return tensor.to(torch.float64)


def psd_sqrt(matrix: Tensor) -> Tensor:
    """Give the symmetric square root of positive semidefinite [..., d, d]; negative rounding counts as zero."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    return root


def damping(epsilon: float) -> float:
    """Give the ridge that a fit needs so that its result survives being rounded.

    A score is a sum of products of two numbers. Each is rounded some three times (its weight, its value, its rotated
    value), every time by a mean square of about (epsilon / 5)^2 of itself, so a product costs epsilon^2 / 4 of its own
    square: large numbers that cancel are not worth it. What is stored in one kind of half precision may well be run in
    the other, so the coarser one counts for both.

    Args:
        epsilon: the spacing of the numbers that the result is stored in, relative (`torch.finfo(dtype).eps`).
    """
    half = epsilon >= torch.finfo(torch.float16).eps
    return torch.finfo(torch.bfloat16).eps ** 2 / 4 if half else _LEAST_DAMPING


def damped_solve(matrix: Tensor, right: Tensor, ridge: Tensor) -> Tensor:
    """(matrix + diag(ridge))^-1 right for positive semidefinite [..., d, d]; a dead head gives zeros.

    Args:
        ridge: [..., d].
    """
    damped = matrix + torch.diag_embed(ridge.clamp_min(torch.finfo(matrix.dtype).tiny * 1e20))
    factor, failed = torch.linalg.cholesky_ex(damped)
    solution: Tensor
    if not bool(failed.any()):  # an inverse and products: triangular solves take several times as long
        solution = torch.cholesky_inverse(factor) @ right
        return solution
    d = matrix.shape[-1]
    if d < _ONE_BY_ONE:
        solution = torch.linalg.solve(damped, right)
        return solution
    batch = torch.broadcast_shapes(damped.shape[:-2], right.shape[:-2])
    pairs = (part.expand(*batch, *part.shape[-2:]).flatten(0, -3) for part in (damped, right))
    solution = torch.stack([torch.linalg.solve(a, b) for a, b in zip(*pairs, strict=True)])
    return solution.reshape(*batch, *right.shape[-2:])


def normalised_overlap(overlap: Tensor) -> Tensor:
    """Give [n, n] squared overlaps divided by both heads' own; a dead head has none with any other."""
    own = overlap.diagonal().clamp_min(1e-200).sqrt()
    return overlap / own[:, None] / own


@dataclass(frozen=True)
class Stack:
    """Heads to be shared, as what they weigh and how they overlap.

    Attributes:
        importance: [n, d, d] positive semidefinite; an error e in head k costs e^T importance e.
        gram: [n, d, n, d], E[k k^T].
    """

    importance: Tensor
    gram: Tensor

    @cached_property
    def root(self) -> Tensor:
        """importance^1/2, [n, d, d]."""
        return psd_sqrt(self.importance)

    @property
    def energy(self) -> float:
        """What all heads weigh together: the error of replacing every head by zero."""
        own = self.gram.diagonal(0, 0, 2)  # [d, d, n]
        return float(torch.einsum("nab,abn->", self.importance, own))

    def _weighted(self, heads: list[int]) -> Tensor:
        """importance^1/2 gram importance^1/2 of n heads: [n d, n d]."""
        n, d = len(heads), self.root.shape[-1]
        root, part = self.root[heads], self.gram[heads][:, :, heads].reshape(n, d, n * d)
        rows = torch.bmm(root, part).reshape(n * d, n, d).transpose(0, 1)
        return torch.bmm(rows, root).transpose(0, 1).reshape(n * d, n * d)

    def affinity(self) -> Tensor:
        """Give [n, n] how much of two heads' weighted energy points the same way: 1 on the diagonal, 0 if nothing."""
        n, d = self.root.shape[:2]
        overlap = torch.empty(n, n, dtype=self.gram.dtype)
        for i in range(n):
            row = torch.matmul(self.root[i], self.gram[i].reshape(d, n * d)).reshape(d, n, d).transpose(0, 1)
            overlap[i] = torch.bmm(row, self.root).square().sum((1, 2))
        return normalised_overlap(overlap)

    def lost(self, heads: tuple[int, ...]) -> float:
        """Give the error that d shared rows leave for these heads: the discarded eigenvalues."""
        values = torch.linalg.eigvalsh(self._weighted(list(heads)))
        return float(values[: -self.root.shape[-1]].clamp_min(0).sum())

    def share(self, heads: list[int]) -> tuple[Tensor, Tensor]:
        """Give the d shared rows that lose least for n of the heads (Eckart-Young).

        Returns:
            mixing [d, n, d] (shared = sum_k mixing[:, k] @ head_k) and
            expansion [n, d, d] (head_k ~ expansion[k] @ shared).
        """
        n, d = len(heads), self.root.shape[-1]
        values, vectors = torch.linalg.eigh(self._weighted(heads))
        values, vectors = values[-d:].flip(0), vectors[:, -d:].flip(1).reshape(n, d, d)
        alive = values > values[0].clamp_min(1e-200) * _RANK_TOLERANCE
        inverse = torch.where(alive, values, torch.ones_like(values)).rsqrt() * alive
        mixing = torch.einsum("kar,kab,r->rkb", vectors, self.root[heads], inverse)
        gram = self.gram[heads][:, :, heads]
        expansion = torch.einsum("kalb,rlb->kar", gram, mixing)
        # rows of unit variance so far: give them the heads' own mean size, which the stored weights then keep
        size = gram.diagonal(0, 0, 2).diagonal(0, 0, 1).mean().clamp_min(0).sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        return mixing * size, expansion / size
