"""The latent of an MLA conversion: which directions of x are cached, and how keys and values come back out of them.

Directions of x are weighed by what they do to scores and outputs. With F_i the position-free keys, Q_i = E[q_i q_i^T]
and N_i = Wo_i Wv_i the two weights are

    P = sum_i F_i^T Q_i F_i / E|score|^2,    R = sum_i N_i^T N_i / E|output|^2,

and x ~ up down x is sought with tr P (1 - up down) C (1 - up down)^T + tr R (1 - up' down) A (1 - up' down)^T least:
keys meet tokens (C), values meet attended mixtures of tokens (A), and each has a map of its own out of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.maths.moments import Moments

_RANK_TOLERANCE = 1e-12
_FLOOR = 1e-9  # of the largest eigenvalue: directions that hardly occur are not divided by
_WORTH_ROUNDING = 1e-6  # of what a latent leaves out
_SETTLED = 1e-7  # a sweep that gains so little of what is lost is the last


@dataclass(frozen=True)
class Latent:
    """down [r, D], and its right inverses [D, r] in the metric of the keys and of the values: x ~ up down x."""

    down: Tensor
    up_k: Tensor
    up_v: Tensor


@dataclass(frozen=True)
class Reading:
    """What reads the latent: an error e of x costs e^T weight e, and x has these moments.

    Attributes:
        weight: [D, D].
    """

    weight: Tensor
    moments: Moments


def pad(latent: Latent, rank: int) -> Latent:
    """Give a latent of a smaller rank, which may be none, filled up with zeros."""
    missing = rank - len(latent.down)
    if missing <= 0:
        return latent
    ups = (torch.nn.functional.pad(up, (0, missing)) for up in (latent.up_k, latent.up_v))
    return Latent(torch.nn.functional.pad(latent.down, (0, 0, 0, missing)), *ups)


def weighed(rows: Tensor, root: Tensor) -> Tensor:
    """Rows [n, D] times L [D, m], or [D] where it is diagonal."""
    return rows * root if root.ndim == 1 else rows @ root


def exact_latent(rows: Tensor | None, hidden: int, rank: int) -> Latent | None:
    """Give a latent that loses nothing, where the rank suffices for one.

    Args:
        rows: [n, D] all that reads x, if n may be below D: then r >= n needs no approximation.
        rank: r.
    """
    if rank >= hidden:
        basis = torch.eye(hidden, dtype=torch.float64)
    elif rows is not None and rank >= rows.shape[0]:
        basis = torch.linalg.qr(rows.T)[0].T  # [n, D], orthonormal
    else:
        return None
    down = torch.zeros(rank, hidden, dtype=torch.float64)
    down[: basis.shape[0]] = basis
    return Latent(down, down.T, down.T)


def fit_latent(keys: Reading, values: Reading, rank: int, sweeps: int = 20) -> Latent:
    """Give the r directions of x that matter most to keys and values.

    Both in one metric: one eigenproblem, and no inverse of C appears, so a dead channel does no harm. Each in its own:
    alternating least squares from there, every half-step a closed form, until a sweep gains next to nothing.
    """
    moments = keys.moments
    if moments is values.moments:
        return _one_metric(keys.weight + values.weight, moments.root(), moments.variance(), rank)
    second_k, second_v = (reading.moments.matrix() for reading in (keys, values))
    return _two_metrics((keys.weight, second_k), (values.weight, second_v), rank, sweeps)


def _one_metric(weight: Tensor, root: Tensor, variance: Tensor, rank: int) -> Latent:
    """Eigenvectors U of L^T P L, L L^T = C: down = eigenvalue^-1 U^T L^T P.

    Args:
        root: L [D, n], or [D] where it is diagonal.
    """
    read = weighed(weight, root)
    values, vectors = largest(weighed(read.T, root), rank)
    alive = values > values[:1].clamp_min(1e-200) * _RANK_TOLERANCE
    inverse = torch.where(alive, values, torch.ones_like(values)).reciprocal() * alive
    down = inverse[:, None] * (read @ vectors).T
    up = weighed(vectors.T, root.T if root.ndim == 2 else root).T
    # unit variance so far; give the latent the size of the input, so that stored weights are of ordinary size
    scale = variance.mean().clamp_min(1e-200).sqrt()
    return Latent(down * scale, up / scale, up / scale)


def largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Give the largest eigenvalues of a positive semidefinite matrix [n, n], falling, and their vectors [n, r].

    Vectors found in float32 span the same space but for rounding; the eigenvalues within it are found in float64
    (Rayleigh & Ritz), in two thirds of the time. Rounding moves the sum of the r largest by twice r times its norm at
    most (Ky Fan 1949): where that might be more than 1e-6 of what is left out, as it is of values that fall steeply,
    all is done in float64.
    """
    if rank > len(matrix) // 2:
        return _exact(matrix, rank)
    values, vectors = _ritz(matrix, rank)
    rounding = 2 * rank * torch.finfo(torch.float32).eps * float(values[0])
    if rounding > _WORTH_ROUNDING * float(matrix.trace() - values.sum()):
        return _exact(matrix, rank)
    return values, vectors


def _exact(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values[-rank:].flip(0), vectors[:, -rank:].flip(1)


def _ritz(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The r largest, from the space that float32 finds."""
    scale = matrix.diagonal().max().clamp_min(1e-200)
    found = torch.linalg.eigh((matrix / scale).float())[1][:, -rank:].double()
    basis = torch.linalg.qr(found)[0]
    values, turned = torch.linalg.eigh(basis.T @ (matrix @ basis))
    return values.flip(0), basis @ turned.flip(1)


def _two_metrics(keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], rank: int, sweeps: int) -> Latent:
    """Alternate between the maps out of the latent, each in its own metric, and the map into it.

    The latter solves S down C + T down A = B, with S = up^T P up and T = up'^T R up': elementwise once both pairs
    (C, A) and (S, T) are diagonal. The first pair is from the start: x = W z with E[z z^T] = diag(s) for keys and
    diag(1 - s) for values, so that a sweep multiplies by two matrices of the hidden size only.
    """
    (weight_k, second_k), (weight_v, second_v) = keys, values
    inputs, outputs_of, seen_k = _inputs(second_k, second_v)
    if not len(seen_k):  # nothing occurs
        return pad(Latent(inputs.T, outputs_of, outputs_of), rank)
    weighed_k, weighed_v = (outputs_of.T @ weight @ outputs_of for weight in (weight_k, weight_v))
    seen_v = 1 - seen_k
    energy = float((weighed_k.diagonal() * seen_k).sum() + (weighed_v.diagonal() * seen_v).sum())
    down = _orthonormal(_exact(weighed_k + weighed_v, rank)[1].T)
    gained = 0.0
    for _ in range(sweeps):
        (up_k, own_k), (up_v, own_v) = _way_out(down, seen_k), _way_out(down, seen_v)
        read_k, read_v = up_k.T @ weighed_k, up_v.T @ weighed_v
        first, second = read_k @ up_k, read_v @ up_v
        before, gained = gained, float((first * own_k).sum() + (second * own_v).sum())
        if gained - before < _SETTLED * (energy - gained):
            break
        outputs, share_out = _diagonal_pair(first, second)
        wanted = outputs.T @ (read_k * seen_k + read_v * seen_v)
        both = share_out[:, None] * seen_k + (1 - share_out)[:, None] * seen_v
        down = _orthonormal(outputs @ (wanted / both.clamp_min(_FLOOR)))
    scale = ((second_k.diagonal() + second_v.diagonal()) / 2).mean().clamp_min(1e-200).sqrt()
    down = down * scale
    ups = [outputs_of @ _way_out(down, seen)[0] for seen in (seen_k, seen_v)]
    return pad(Latent(down @ inputs.T, *ups), rank)


def _inputs(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V, W [D, n] and s [n] with V^T W = 1, first = W diag(s) W^T and second = W diag(1 - s) W^T.

    What hardly occurs in either is left out, so that nothing is divided by it: n <= D.
    """
    values, vectors = torch.linalg.eigh(first + second)
    alive = values > values[-1].clamp_min(1e-200) * _FLOOR
    size, vectors = values[alive].sqrt(), vectors[:, alive]
    white = vectors / size
    share, turned = torch.linalg.eigh(white.T @ first @ white)
    return white @ turned, (vectors * size) @ turned, share.clamp(0, 1)


def _diagonal_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """V [n, n] and s [n] with V^T first V = diag(s) and V^T second V = diag(1 - s)."""
    values, vectors = torch.linalg.eigh(first + second)
    white = vectors / values.clamp_min(values[-1].clamp_min(1e-200) * _FLOOR).sqrt()
    share, turned = torch.linalg.eigh(white.T @ first @ white)
    return white @ turned, share.clamp(0, 1)


def _orthonormal(down: Tensor) -> Tensor:
    """The same rows' span with latents that are uncorrelated and of one size: float32 is to hold what comes out."""
    values, vectors = torch.linalg.eigh(down @ down.T / 2)
    white = vectors / values.clamp_min(values[-1].clamp_min(1e-200) * _FLOOR).sqrt()
    rotated: Tensor = white @ vectors.T @ down
    return rotated


def _way_out(down: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """S down^T M^-1 [n, r] and M = down S down^T [r, r], S = diag(seen)."""
    towards = seen[:, None] * down.T
    own = down @ towards
    ridge = _FLOOR * own.diagonal().mean().clamp_min(1e-200)
    up: Tensor = torch.linalg.solve(own + ridge * torch.eye(len(own), dtype=own.dtype), towards.T).T
    return up, own
