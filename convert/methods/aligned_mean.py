"""Averaging of heads that are turned towards each other first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import double
from convert_attn.convert.maths.moments import gram
from convert_attn.convert.maths.rotary import from_planes, to_planes
from convert_attn.convert.methods.base import LayerContext, Method
from convert_attn.convert.weights.attention import AttentionWeights

_ROUNDS = 20

Nearest = Callable[[Tensor], Tensor]
"""[n, d, d] cross moments of a mean with each head -> the turn of each head [n, d, d] that comes nearest to it."""


def _orthogonal(cross: Tensor) -> Tensor:
    """Procrustes: the polar factor."""
    left, _, right = torch.linalg.svd(cross)
    polar: Tensor = left @ right
    return polar


def _phases(cross: Tensor) -> Tensor:
    """Under rotary position only a phase in each plane commutes with every rotation."""
    linear, _ = to_planes(cross)
    phase = torch.polar(torch.ones_like(linear.diagonal(0, 1, 2).real), linear.diagonal(0, 1, 2).angle())
    turned = torch.diag_embed(phase)
    return from_planes(turned, torch.zeros_like(turned))


def _turns(overlap: Tensor, nearest: Nearest) -> Tensor:
    """The turn of each of n heads towards their common mean, by turns: overlap [n, d, n, d] -> [n, d, d]."""
    n, d = overlap.shape[:2]
    turns = torch.eye(d, dtype=torch.float64).repeat(n, 1, 1)
    for _ in range(_ROUNDS):
        turns = nearest(torch.einsum("kab,kbld->lad", turns, overlap))
    return turns


def _mean(turns: Tensor, heads: Tensor, per_group: int) -> Tensor:
    """Average of each group's turned heads: [K, d, ...] -> [G, d, ...]."""
    turned = torch.stack([turn @ double(head) for turn, head in zip(turns, heads, strict=True)])
    mean: Tensor = turned.unflatten(0, (-1, per_group)).mean(1)
    return mean.to(heads.dtype)


def share(weights: AttentionWeights, groups: int, context: LayerContext) -> AttentionWeights:
    """Neighbouring heads, each turned to agree best with the group's mean, averaged; queries and outputs turn along."""
    per_group, per_kv = weights.num_kv_heads // groups, weights.queries_per_kv
    nearest = _orthogonal if context.rotary is None else _phases
    turns_k, turns_v = [], []
    for begin in range(0, weights.num_kv_heads, per_group):
        group = slice(begin, begin + per_group)
        k_bias = None if weights.k_bias is None else weights.k_bias[group]
        if weights.k_gain is None:
            turns_k.append(_turns(gram(weights.k[group], k_bias, context.key_moments), nearest))
        else:  # a turn commutes with a norm, but not with its weight
            turns_k.append(torch.eye(weights.head_dim, dtype=torch.float64).repeat(per_group, 1, 1))
        turns_v.append(_turns(gram(weights.v[group], None, context.value_moments), _orthogonal))
    keys, values = torch.cat(turns_k), torch.cat(turns_v)
    per_query_k, per_query_v = (turns.repeat_interleave(per_kv, 0) for turns in (keys, values))

    def turn(turns: Tensor, heads: Tensor) -> Tensor:
        return torch.stack([t @ double(head) for t, head in zip(turns, heads, strict=True)]).to(heads.dtype)

    return replace(
        weights,
        q=turn(per_query_k, weights.q),
        k=_mean(keys, weights.k, per_group),
        v=_mean(values, weights.v, per_group),
        o=turn(per_query_v, weights.o.mT).mT,
        q_bias=None if weights.q_bias is None else turn(per_query_k, weights.q_bias),
        k_bias=None if weights.k_bias is None else _mean(keys, weights.k_bias, per_group),
        v_bias=None if weights.v_bias is None else _mean(values, weights.v_bias, per_group),
        k_gain=None if weights.k_gain is None else weights.k_gain.unflatten(0, (-1, per_group)).mean(1),
        k_shift=None if weights.k_shift is None else weights.k_shift.unflatten(0, (-1, per_group)).mean(1),
    )


METHOD = Method(
    name="aligned-mean",
    summary="averaging of neighbouring heads, each turned first to agree best with the group's mean",
    source="Jin et al. 2024, arXiv:2412.20677, section 3 (Procrustes alignment); its grouping is not included",
    share=share,
    literal=True,
    calibration="optional",
)
