"""First and second moment of an attention block's input, and Gram matrices of the heads that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import psd_sqrt

_ROWS = 512  # of heads that are multiplied at once: large products, and few numbers in float64 beside the result
_COLUMNS = 512  # of a sum over heads that are made at once


@dataclass(frozen=True)
class Moments:
    """E[x x^T] and E[x] of the block's input x [D] (after the norm), float64.

    Attributes:
        mean: [D].
        second: [D, D] E[x x^T]; or [D], the variances where only the norm is known: then E[x x^T] is
            diag(second) + mean mean^T, and the guess without data costs no D x D matrix.
    """

    mean: Tensor
    second: Tensor

    @property
    def _is_diagonal(self) -> bool:
        return self.second.ndim == 1

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """E[(left [x; 1]) (right [x; 1])^T] for [m, D + 1] and [n, D + 1]: [m, n]."""
        return self.reader(left)(right)

    def reader(self, left: Tensor) -> Callable[[Tensor], Tensor]:
        """Give `product` with one side [m, D + 1] known, for many other sides: it meets the moments once."""
        a, a_bias = left[:, :-1], left[:, -1]
        weighed, a_mean = a * self.second if self._is_diagonal else a @ self.second, a @ self.mean
        shift = a_mean if self._is_diagonal else torch.zeros_like(a_mean)  # a variance lacks the mean's square

        def product(right: Tensor) -> Tensor:
            b, b_bias = right[:, :-1], right[:, -1]
            b_mean = b @ self.mean
            found = weighed @ b.T
            # E[x x^T] a side, the mean of one and the bias of the other, both biases
            return found.addr_(shift + a_bias, b_mean).addr_(a_mean + a_bias, b_bias)

        return product

    def root(self) -> Tensor:
        """Give some L [D, n] with L L^T = E[x x^T], or [D] where a diagonal one does."""
        if not self._is_diagonal:
            return psd_sqrt(self.second)
        root = self.second.sqrt()
        return torch.cat([torch.diag(root), self.mean[:, None]], 1) if bool(self.mean.any()) else root

    def power(self, weight: Tensor) -> Tensor:
        """E[(W x)_j^2] for W [m, D]: what each output is in the square, [m]."""
        rows = weight.to(torch.float64)
        if self._is_diagonal:
            return rows.square() @ self.second + (rows @ self.mean).square()
        return ((rows @ self.second) * rows).sum(1)

    def energy(self, weight: Tensor) -> float:
        """E[x^T P x] for P [D, D]."""
        if self._is_diagonal:
            return float(weight.diagonal() @ self.second + self.mean @ weight @ self.mean)
        return float((weight * self.second).sum())

    def matrix(self) -> Tensor:
        """Give [D, D] E[x x^T]."""
        return torch.diag(self.second) + torch.outer(self.mean, self.mean) if self._is_diagonal else self.second

    def variance(self) -> Tensor:
        """Give [D] the diagonal of E[x x^T]."""
        return self.second + self.mean**2 if self._is_diagonal else self.second.diagonal()


def moments_from_norm(gain: Tensor, bias: Tensor | None) -> Moments:
    """Give the guess without data: a normalised vector has unit second moments, so C = diag(gain^2) + bias bias^T.

    Args:
        gain: [D] the norm's weight.
        bias: [D] or None (RMSNorm).
    """
    gain = gain.to(torch.float64)
    return Moments(torch.zeros_like(gain) if bias is None else bias.to(torch.float64), gain**2)


def with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Give rows [n, D] in float64 with their bias [n] as one more input coordinate: [n, D + 1]."""
    column = torch.zeros_like(weight[:, :1]) if bias is None else bias[:, None]
    return torch.cat([weight, column], -1).to(torch.float64)


def gram(heads: Tensor, bias: Tensor | None, moments: Moments) -> Tensor:
    """E[k k^T] across all heads: heads [n, d, D], bias [n, d] -> [n, d, n, d].

    Some heads at a time, so that no second copy of the weights in float64 is made; each pair of them once.
    """
    n, d, _ = heads.shape
    result = torch.empty(n * d, n * d, dtype=torch.float64)
    step = max(1, _ROWS // d)
    parts = [(begin * d, min(begin + step, n) * d) for begin in range(0, n, step)]
    rows, numbers = heads.flatten(0, 1), None if bias is None else bias.flatten()
    for number, (begin, end) in enumerate(parts):
        read = moments.reader(_with_bias_of(rows, numbers, begin, end))
        for first, last in parts[: number + 1]:
            block = read(_with_bias_of(rows, numbers, first, last))
            result[begin:end, first:last] = block
            if first != begin:
                result[first:last, begin:end] = block.T
    return result.view(n, d, n, d)


def _with_bias_of(rows: Tensor, bias: Tensor | None, begin: int, end: int) -> Tensor:
    return with_bias(rows[begin:end], None if bias is None else bias[begin:end])


def own_gram(heads: Tensor, bias: Tensor | None, moments: Moments) -> Tensor:
    """E[q q^T] of each head by itself: heads [n, d, D], bias [n, d] -> [n, d, d]."""
    rows = (with_bias(head, None if bias is None else bias[i]) for i, head in enumerate(heads))
    return torch.stack([moments.product(row, row) for row in rows])


def weighed_sum(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum rows^T weight rows over parts, weights [d, d] symmetric and rows [d, D] in float64: [D, D].

    Some parts at a time in one product, and of the symmetric result one half only.
    """
    total: Tensor | None = None
    left: list[Tensor] = []
    right: list[Tensor] = []
    for weight, rows in parts:
        total = rows.new_zeros(rows.shape[1], rows.shape[1]) if total is None else total
        left.append(weight @ rows)
        right.append(rows)
        if len(right) * len(rows) >= _ROWS:
            _add_half(total, torch.cat(left), torch.cat(right))
            left, right = [], []
    if total is None:
        raise ValueError("a sum of no parts has no size")
    if right:
        _add_half(total, torch.cat(left), torch.cat(right))
    for begin in range(0, len(total), _COLUMNS):
        total[:begin, begin : begin + _COLUMNS] = total[begin : begin + _COLUMNS, :begin].T
    return total


def _add_half(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right, symmetric, in blocks of columns: those on the diagonal and below it."""
    for begin in range(0, len(total), _COLUMNS):
        end = min(begin + _COLUMNS, len(total))
        total[begin:end, :end].addmm_(left[:, begin:end].T, right[:, :end])
