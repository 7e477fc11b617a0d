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

from convert_attn.convert.maths.head_sharing import psd_sqrt
from convert_attn.convert.maths.moments import Moments

_RANK_TOLERANCE = 1e-12
_FLOOR = 1e-9  # of the largest eigenvalue: directions that hardly occur are not divided by


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
    alternating least squares from there, every half-step a closed form.
    """
    if keys.moments is values.moments:
        return _one_metric(keys.weight + values.weight, keys.moments.root(), keys.moments.variance(), rank)
    second_k, second_v = (reading.moments.matrix() for reading in (keys, values))
    middle = (second_k + second_v) / 2
    start = _one_metric(keys.weight + values.weight, psd_sqrt(middle), middle.diagonal(), rank)
    return _two_metrics(start.down, (keys.weight, second_k), (values.weight, second_v), sweeps)


def _one_metric(weight: Tensor, root: Tensor, variance: Tensor, rank: int) -> Latent:
    """Eigenvectors U of L^T P L, L L^T = C: down = eigenvalue^-1 U^T L^T P."""
    weighed = weight @ root
    values, vectors = torch.linalg.eigh(root.T @ weighed)
    values, vectors = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    alive = values > values[:1].clamp_min(1e-200) * _RANK_TOLERANCE
    inverse = torch.where(alive, values, torch.ones_like(values)).reciprocal() * alive
    down = inverse[:, None] * (weighed @ vectors).T
    up = root @ vectors
    # unit variance so far; give the latent the size of the input, so that stored weights are of ordinary size
    scale = variance.mean().clamp_min(1e-200).sqrt()
    return Latent(down * scale, up / scale, up / scale)


def _two_metrics(down: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], sweeps: int) -> Latent:
    """Alternate between the maps out of the latent, each in its own metric, and the map into it.

    The latter solves S down C + T down A = B, with S = up^T P up and T = up'^T R up': elementwise once both pairs
    (C, A) and (S, T) are diagonal.
    """
    (weight_k, second_k), (weight_v, second_v) = keys, values
    inputs, share_in = _diagonal_pair(second_k, second_v)
    middle = (second_k + second_v) / 2
    down = _orthonormal(down, middle)
    for _ in range(sweeps):
        up_k, up_v = _way_out(down, second_k), _way_out(down, second_v)
        read_k, read_v = up_k.T @ weight_k, up_v.T @ weight_v
        outputs, share_out = _diagonal_pair(read_k @ up_k, read_v @ up_v)
        wanted = outputs.T @ (read_k @ second_k + read_v @ second_v) @ inputs
        both = share_out[:, None] * share_in + (1 - share_out)[:, None] * (1 - share_in)
        down = _orthonormal(outputs @ (wanted / both.clamp_min(_FLOOR)) @ inputs.T, middle)
    scale = middle.diagonal().mean().clamp_min(1e-200).sqrt()
    down = down * scale
    return Latent(down, _way_out(down, second_k), _way_out(down, second_v))


def _diagonal_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """V [n, n] and s [n] with V^T first V = diag(s) and V^T second V = diag(1 - s)."""
    values, vectors = torch.linalg.eigh(first + second)
    white = vectors / values.clamp_min(values[-1].clamp_min(1e-200) * _FLOOR).sqrt()
    share, turned = torch.linalg.eigh(white.T @ first @ white)
    return white @ turned, share.clamp(0, 1)


def _orthonormal(down: Tensor, second: Tensor) -> Tensor:
    """The same rows' span with unit, uncorrelated latents: otherwise float32 cannot hold what comes out."""
    values, vectors = torch.linalg.eigh(down @ second @ down.T)
    white = vectors / values.clamp_min(values[-1].clamp_min(1e-200) * _FLOOR).sqrt()
    rotated: Tensor = white @ vectors.T @ down
    return rotated


def _way_out(down: Tensor, second: Tensor) -> Tensor:
    """C down^T (down C down^T)^-1: [D, r]."""
    seen = second @ down.T
    ridge = _FLOOR * (down @ seen).diagonal().mean().clamp_min(1e-200) * torch.eye(down.shape[0], dtype=seen.dtype)
    up: Tensor = torch.linalg.solve(down @ seen + ridge, seen.T).T
    return up
