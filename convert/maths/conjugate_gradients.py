"""Least squares without a matrix: preconditioned conjugate gradients (Hestenes & Stiefel 1952) on lists of tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def regular(moment: Tensor) -> Tensor:
    """Give a second moment [n, n] in float64 that can be inverted."""
    moment = moment.double()
    size = moment.diagonal().mean().clamp_min(1e-30)
    return moment + 1e-3 * size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def conjugate_gradients(
    apply: Callable[[list[Tensor]], list[Tensor]],
    right: list[Tensor],
    precondition: Callable[[list[Tensor]], list[Tensor]],
    steps: int,
) -> list[Tensor]:
    """Give an approximate solution of apply(x) = right, for a symmetric positive definite map of lists of tensors."""

    def dot(left: list[Tensor], other: list[Tensor]) -> float:
        return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(left, other, strict=True))

    found = [torch.zeros_like(part) for part in right]
    rest, ahead = [part.clone() for part in right], precondition(right)
    direction, now = ahead, dot(right, ahead)
    first = now
    for _ in range(steps):
        if not now > max(first * 1e-10, 1e-30):
            break
        moved = apply(direction)
        along = dot(direction, moved)
        if not along > 0:
            break
        for x, d in zip(found, direction, strict=True):
            x += now / along * d
        for r, m in zip(rest, moved, strict=True):
            r -= now / along * m
        ahead = precondition(rest)
        before, now = now, dot(rest, ahead)
        direction = [a + now / before * d for a, d in zip(ahead, direction, strict=True)]
    return found
