"""From fits to latent attention weights: what the MLA methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import double
from convert_attn.convert.maths.latent_basis import Latent
from convert_attn.convert.maths.moments import weighed_sum
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentWeights


@dataclass(frozen=True)
class Decoupled:
    """Keys taken apart: a shared rotary key, a query map for it, and position-free keys per query head.

    Attributes:
        mixing: [R, K, d], the rotary key as a mixture of the keys; None without rotary position.
        maps: [H, R, d], q_rope_i = maps_i q_i; None without rotary position.
        inv_freq: [R / 2].
        nope: query head -> its position-free key [d, D] in float64 (made when asked for: all of them are large).
    """

    mixing: Tensor | None
    maps: Tensor | None
    inv_freq: Tensor
    nope: Callable[[int], Tensor]


def without_rotary(weights: AttentionWeights) -> Decoupled:
    """Give no rotary position: all of the key is position-free (its bias drops out of the softmax)."""
    per_kv = weights.queries_per_kv
    return Decoupled(None, None, torch.zeros(0, dtype=torch.float64), lambda i: double(weights.k[i // per_kv]))


def key_rows(weights: AttentionWeights, decoupled: Decoupled) -> Tensor:
    """Give the position-free keys of all K key heads, by their first query head: [K d, D]."""
    step = weights.queries_per_kv
    return torch.cat([decoupled.nope(i * step) for i in range(weights.num_kv_heads)])


def score_weight(queries: Tensor, decoupled: Decoupled) -> Tensor:
    """sum_i F_i^T Q_i F_i: [D, D]; queries [H, d, d]."""
    return weighed_sum((moment, decoupled.nope(i)) for i, moment in enumerate(queries))


def output_weight(weights: AttentionWeights) -> Tensor:
    """sum_i (Wo_i Wv_i)^T Wo_i Wv_i: [D, D]."""
    per_kv = weights.queries_per_kv

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for kv, value in enumerate(map(double, weights.v)):
            outputs = weights.o[kv * per_kv : (kv + 1) * per_kv]
            yield torch.stack([o.T @ o for o in map(double, outputs)]).sum(0), value

    return weighed_sum(parts())


def assemble(weights: AttentionWeights, decoupled: Decoupled, latent: Latent, mean: Tensor) -> LatentWeights:
    """Give latent attention weights in the dtype of `weights`.

    The V bias and what the latent misses of the mean input go to the output bias: softmax rows sum to one.

    Args:
        mean: [D] E[x].
    """
    dtype, per_kv = weights.q.dtype, weights.queries_per_kv
    heads = range(weights.num_heads)
    up_v = [double(v) @ latent.up_v for v in weights.v]  # [K] x [d, r]
    missed = [double(v) @ mean - up @ (latent.down @ mean) for v, up in zip(weights.v, up_v, strict=True)]
    if weights.v_bias is not None:
        missed = [miss + double(bias) for miss, bias in zip(missed, weights.v_bias, strict=True)]
    o_bias = None if weights.o_bias is None else double(weights.o_bias)
    if any(bool(miss.any()) for miss in missed):
        shift = torch.stack([double(weights.o[i]) @ missed[i // per_kv] for i in heads]).sum(0)
        o_bias = shift if o_bias is None else o_bias + shift
    q_rope, q_rope_bias, k_rope, k_rope_bias = _rotary_parts(weights, decoupled)
    return LatentWeights(
        q_nope=weights.q,
        q_rope=q_rope,
        down=latent.down.to(dtype),
        k_rope=k_rope,
        up_k=torch.stack([(decoupled.nope(i) @ latent.up_k).to(dtype) for i in heads]),
        up_v=torch.stack([up_v[i // per_kv].to(dtype) for i in heads]),
        o=weights.o,
        inv_freq=decoupled.inv_freq,
        q_nope_bias=weights.q_bias,
        q_rope_bias=q_rope_bias,
        k_rope_bias=k_rope_bias,
        o_bias=None if o_bias is None else o_bias.to(dtype),
    )


def _rotary_parts(
    weights: AttentionWeights, decoupled: Decoupled
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """q_rope [H, R, D] and its bias, k_rope [R, D] and its bias; R = 0 without rotary position."""
    hidden, heads = weights.q.shape[-1], weights.num_heads
    if decoupled.mixing is None or decoupled.maps is None:
        bias = None if weights.q_bias is None else weights.q_bias.new_zeros(heads, 0)
        return weights.q.new_zeros(heads, 0, hidden), bias, weights.q.new_zeros(0, hidden), None
    dtype = weights.q.dtype
    q_rope = torch.stack([(m @ double(q)).to(dtype) for m, q in zip(decoupled.maps, weights.q, strict=True)])
    q_bias = None
    if weights.q_bias is not None:
        q_bias = torch.einsum("hrd,hd->hr", decoupled.maps, double(weights.q_bias)).to(dtype)
    k_rope = torch.stack([decoupled.mixing[:, n] @ double(k) for n, k in enumerate(weights.k)]).sum(0).to(dtype)
    k_bias = None
    if weights.k_bias is not None:
        k_bias = torch.einsum("rkd,kd->r", decoupled.mixing, double(weights.k_bias)).to(dtype)
    return q_rope, q_bias, k_rope, k_bias
