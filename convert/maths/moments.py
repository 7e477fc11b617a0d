"""First and second moment of an attention block's input, and Gram matrices of the heads that read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import psd_sqrt


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
        (a, a_bias), (b, b_bias) = (left[:, :-1], left[:, -1]), (right[:, :-1], right[:, -1])
        a_mean, b_mean = a @ self.mean, b @ self.mean
        if self._is_diagonal:
            second = (a * self.second) @ b.T + torch.outer(a_mean, b_mean)
        else:
            second = a @ self.second @ b.T
        return second + torch.outer(a_mean, b_bias) + torch.outer(a_bias, b_mean) + torch.outer(a_bias, b_bias)

    def root(self) -> Tensor:
        """Give some L [D, n] with L L^T = E[x x^T]."""
        if not self._is_diagonal:
            return psd_sqrt(self.second)
        columns = torch.diag(self.second.sqrt())
        return torch.cat([columns, self.mean[:, None]], 1) if bool(self.mean.any()) else columns

    def power(self, weight: Tensor) -> Tensor:
        """E[(W x)_j^2] for W [m, D]: what each output is in the square, [m]."""
        rows = weight.to(torch.float64)
        if self._is_diagonal:
            return rows.square() @ self.second + (rows @ self.mean).square()
        return ((rows @ self.second) * rows).sum(1)

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

    Head by head, so that no second copy of the weights in float64 is made.
    """
    n, d, _ = heads.shape
    result = torch.empty(n, d, n, d, dtype=torch.float64)
    for i in range(n):
        left = with_bias(heads[i], None if bias is None else bias[i])
        for j in range(i + 1):
            right = left if i == j else with_bias(heads[j], None if bias is None else bias[j])
            block = moments.product(left, right)
            result[i, :, j] = block
            result[j, :, i] = block.T
    return result


def own_gram(heads: Tensor, bias: Tensor | None, moments: Moments) -> Tensor:
    """E[q q^T] of each head by itself: heads [n, d, D], bias [n, d] -> [n, d, d]."""
    rows = (with_bias(head, None if bias is None else bias[i]) for i, head in enumerate(heads))
    return torch.stack([moments.product(row, row) for row in rows])
