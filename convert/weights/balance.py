"""Exact symmetries that even out the sizes of weights: query and key, value and output, the two sides of a latent.

One side may be multiplied and the other divided without changing what is computed: per rotary plane of a key and of
the queries that read it, per number of a value and of the output projection's columns that read it, per channel of
a latent and of all that reads it. Fits leave these factors wherever they fall. Here they are chosen so that both sides
are of one size, measured as the mean square of an entry (over all heads that share it), biases included.

Every factor is a power of two, so every product stays what it was to the last bit in any floating-point dtype, and the
two sides are equal up to a factor of two. Where one side is zero, nothing is changed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentWeights

_ROUNDS = 8  # the factors of a latent and of its readers depend on each other
_LARGEST = 2.0**60  # factor: beyond that a side is nothing but rounding


def balanced(weights: AttentionWeights | LatentWeights, rotary: bool) -> AttentionWeights | LatentWeights:
    """Weights of either form that compute the same, with numbers of one size on both sides of every product."""
    return balanced_latent(weights) if isinstance(weights, LatentWeights) else balanced_heads(weights, rotary)


def balanced_heads(weights: AttentionWeights, rotary: bool) -> AttentionWeights:
    """Give heads, shared or not: a factor per K/V head and rotary plane, and per K/V head and number of a value.

    Args:
        rotary: whether the planes (p, p + d/2) turn; else every number of a key has a factor of its own.
    """
    keys, per_kv = weights.num_kv_heads, weights.queries_per_kv
    query = _mean_square(weights.q, weights.q_bias).unflatten(0, (keys, per_kv)).mean(1)  # [K, d]
    together = _planes if rotary else _each
    key = _factor(together(_mean_square(weights.k, weights.k_bias)), together(query))
    if weights.k_gain is not None:  # a norm commutes with none of its input's factors
        key = torch.ones_like(key)
    output = weights.o.to(torch.float64).square().mean(1).unflatten(0, (keys, per_kv)).mean(1)
    value = _factor(_mean_square(weights.v, weights.v_bias), output)
    by_query, by_output = (1 / part.repeat_interleave(per_kv, 0) for part in (key, value))
    return replace(
        weights,
        q=_rows(weights.q, by_query),
        q_bias=_numbers(weights.q_bias, by_query),
        k=_rows(weights.k, key),
        k_bias=_numbers(weights.k_bias, key),
        v=_rows(weights.v, value),
        v_bias=_numbers(weights.v_bias, value),
        o=_columns(weights.o, by_output),
    )


def balanced_latent(weights: LatentWeights) -> LatentWeights:
    """A latent: one factor per channel of it, per number of every head's key and value, per plane of the rotary key.

    A norm on the latent commutes with none of its channels' factors: then they are left alone.
    """
    q = _mean_square(weights.q_nope, weights.q_nope_bias)  # [H, d]
    o = weights.o.to(torch.float64).square().mean(1)  # [H, d]
    up_k, up_v = (up.to(torch.float64).square() for up in (weights.up_k, weights.up_v))  # [H, d, r]
    down = _mean_square(weights.down, None)  # [r]
    key, value = torch.ones_like(q), torch.ones_like(o)
    channel = torch.ones_like(down)
    for _ in range(_ROUNDS):
        if weights.head_norm is None:  # a norm commutes with none of its input's factors
            key = _ratio((up_k / channel.square()).mean(-1), q)
        value = _ratio((up_v / channel.square()).mean(-1), o)
        if not weights.norm:
            readers = [(up * scale.square()[..., None]).mean((0, 1)) for up, scale in ((up_k, key), (up_v, value))]
            channel = _ratio(down, (readers[0] + readers[1]) / 2)
    key, value, channel = (_power_of_two(factor) for factor in (key, value, channel))
    rope = _factor(
        _planes(_mean_square(weights.k_rope, weights.k_rope_bias)),
        _planes(_mean_square(weights.q_rope, weights.q_rope_bias).mean(0)),
    )
    return replace(
        weights,
        q_nope=_rows(weights.q_nope, 1 / key),
        q_nope_bias=_numbers(weights.q_nope_bias, 1 / key),
        up_k=_columns(_rows(weights.up_k, key), 1 / channel),
        up_v=_columns(_rows(weights.up_v, value), 1 / channel),
        o=_columns(weights.o, 1 / value),
        down=_rows(weights.down, channel),
        power=None if weights.power is None else weights.power * channel.square(),
        k_rope=_rows(weights.k_rope, rope),
        k_rope_bias=_numbers(weights.k_rope_bias, rope),
        q_rope=_rows(weights.q_rope, 1 / rope),
        q_rope_bias=_numbers(weights.q_rope_bias, 1 / rope),
    )


def _mean_square(rows: Tensor, bias: Tensor | None) -> Tensor:
    """Of the entries of each row [..., D], the bias [...] counted like an input of one: [...]."""
    total = rows.to(torch.float64).square().sum(-1)
    if bias is not None:
        total = total + bias.to(torch.float64).square()
    return total / max(rows.shape[-1], 1)


def _planes(squares: Tensor) -> Tensor:
    """[..., d] -> [..., d]: both numbers of a plane (p, p + d/2) get their mean."""
    mean = squares.unflatten(-1, (2, squares.shape[-1] // 2)).mean(-2)
    return torch.cat([mean, mean], -1)


def _each(squares: Tensor) -> Tensor:
    return squares


def _ratio(here: Tensor, there: Tensor) -> Tensor:
    """What to multiply one side by, and to divide the other by, for equal mean squares."""
    both = (here > 0) & (there > 0)
    ratio = torch.where(both, there, 1.0) / torch.where(both, here, 1.0)
    return ratio.pow(0.25).clamp(1 / _LARGEST, _LARGEST)


def _power_of_two(factor: Tensor) -> Tensor:
    return factor.log2().round().exp2()


def _factor(here: Tensor, there: Tensor) -> Tensor:
    return _power_of_two(_ratio(here, there))


def _rows(weight: Tensor, factor: Tensor) -> Tensor:
    """[..., n, D] with its rows multiplied by [..., n]."""
    return weight * factor[..., None].to(weight.dtype)


def _columns(weight: Tensor, factor: Tensor) -> Tensor:
    """[..., m, n] with its columns multiplied by [..., n] or [n]."""
    return weight * factor.to(weight.dtype)[..., None, :]


def _numbers(bias: Tensor | None, factor: Tensor) -> Tensor | None:
    return None if bias is None else bias * factor.to(bias.dtype)
