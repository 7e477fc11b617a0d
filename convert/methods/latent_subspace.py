"""MLA in the QK/VO form: the latent keeps what scores and outputs need, position lives in a fitted rotary key."""

from __future__ import annotations

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import damping, double
from convert_attn.convert.maths.latent_basis import Reading, exact_latent, fit_latent
from convert_attn.convert.maths.moments import gram, own_gram
from convert_attn.convert.maths.rotary_key import fit_shared_rotary_key, mean_rotation
from convert_attn.convert.maths.shared_key import RotaryKeys
from convert_attn.convert.methods.base import LayerContext
from convert_attn.convert.methods.latent_parts import (
    Decoupled,
    assemble,
    output_weight,
    score_weight,
    without_rotary,
)
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentSizes, LatentWeights


def decouple(weights: AttentionWeights, sizes: LatentSizes, queries: Tensor, context: LayerContext) -> Decoupled:
    """The shared rotary key by least squares; what it leaves of the keys, averaged over offsets, is position-free."""
    if context.rotary is None:
        return without_rotary(weights)
    keys = RotaryKeys(
        queries=queries,
        gram=gram(weights.k, weights.k_bias, context.key_moments),
        rotary=context.rotary,
        offsets=context.offsets,
        damping=damping(context.epsilon),
    )
    fit = fit_shared_rotary_key(keys, sizes.rope_dim, sizes.frequencies)
    own_mean = mean_rotation(context.rotary.inv_freq.to(torch.float64), context.offsets)  # [H, d, d]
    shared_mean = mean_rotation(fit.inv_freq, context.offsets)  # [H, R, R]
    shared = torch.stack([fit.mixing[:, n] @ double(k) for n, k in enumerate(weights.k)]).sum(0)  # [R, D]
    per_kv = weights.queries_per_kv

    def nope(i: int) -> Tensor:
        return own_mean[i] @ double(weights.k[i // per_kv]) - fit.maps[i].T @ (shared_mean[i] @ shared)

    return Decoupled(fit.mixing, fit.maps, fit.inv_freq, nope)


def _readings(
    weights: AttentionWeights, queries: Tensor, decoupled: Decoupled, context: LayerContext
) -> tuple[Reading, Reading]:
    """What keys and values want of the latent, each error relative to its own energy, summed over heads.

    The energy of scores is that at offset 0.
    """
    per_kv = weights.queries_per_kv
    keys = own_gram(weights.k, None, context.key_moments)
    score_energy = sum(float((q * keys[i // per_kv]).sum()) for i, q in enumerate(queries))
    score, output = score_weight(queries, decoupled), output_weight(weights)
    output_energy = context.value_moments.energy(output)
    return (
        Reading(score * (context.score_share / max(score_energy, 1e-200)), context.key_moments),
        Reading(output / max(output_energy, 1e-200), context.value_moments),
    )


def compress(weights: AttentionWeights, sizes: LatentSizes, context: LayerContext) -> LatentWeights:
    """Give latent attention that minimises the error of scores and outputs under the context's moments."""
    queries = context.once("queries", lambda: own_gram(weights.q, weights.q_bias, context.moments))
    rotary = ("rotary", sizes.rope_dim, sizes.frequencies)
    decoupled = context.once(rotary, lambda: decouple(weights, sizes, queries, context))
    latent = exact_latent(_rows(weights, decoupled, sizes.rank), weights.q.shape[-1], sizes.rank)
    if latent is None:
        readings = context.once((*rotary, "read"), lambda: _readings(weights, queries, decoupled, context))
        latent = fit_latent(*readings, sizes.rank, context.sweeps)
    # not centred: attention does not average tokens evenly, and the mean over tokens is not what values meet
    return assemble(weights, decoupled, latent, torch.zeros_like(context.moments.mean))


def _rows(weights: AttentionWeights, decoupled: Decoupled, rank: int) -> Tensor | None:
    """All rows that read the latent, where there are no more of them than its size: then nothing is lost."""
    heads = weights.num_kv_heads if decoupled.mixing is None else weights.num_heads
    count = (heads + weights.num_kv_heads) * weights.head_dim
    if rank < count:
        return None
    step = weights.num_heads // heads
    keys = [decoupled.nope(i * step) for i in range(heads)]
    return torch.cat([*keys, *map(double, weights.v)])
