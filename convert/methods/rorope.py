"""TransMLA's conversion, to compare with: real PCA across heads in every rotary plane, then PCA of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import double
from convert_attn.convert.maths.latent_basis import Latent, pad, weighed
from convert_attn.convert.maths.moments import gram
from convert_attn.convert.methods.base import LayerContext, Method
from convert_attn.convert.methods.latent_parts import Decoupled, assemble, key_rows, without_rotary
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentSizes, LatentWeights


def real_pca(weights: AttentionWeights, sizes: LatentSizes, context: LayerContext) -> Decoupled:
    """Give the R / 2 (plane, component) pairs of largest energy stay rotary, the rest acts as if at offset 0.

    Where the class prescribes frequencies, each takes the largest component that is left of the plane that turns most
    nearly as fast (the same, where R is the head size), and turns it at the class's speed.

    Within a plane the heads are turned by one real orthogonal matrix, which commutes with every rotation; the query
    takes the same matrix (TransMLA, arXiv:2502.07864, RoRoPE).
    """
    if context.rotary is None:
        return without_rotary(weights)
    overlap = gram(weights.k, weights.k_bias, context.moments)
    keys, d = overlap.shape[:2]
    planes = d // 2
    both = overlap.diagonal(0, 1, 3).permute(2, 0, 1)  # [d, K, K]
    values, vectors = torch.linalg.eigh(both[:planes] + both[planes:])  # [P, K], [P, K, K]
    own = context.rotary.inv_freq.to(torch.float64)
    values = torch.where(own[:, None] == 0, -1.0, values)  # what does not turn comes last
    if sizes.frequencies is None:
        picks = values.flatten().topk(sizes.rope_dim // 2).indices
        chosen = [(pick // keys, pick % keys) for pick in picks.tolist()]
        inv_freq = own[picks // keys]
    else:
        chosen = [(plane, keys - 1 - before) for plane, before in context.rotary.nearest(sizes.frequencies)]
        inv_freq = torch.tensor(sizes.frequencies, dtype=torch.float64)
    mixing = torch.zeros(sizes.rope_dim, keys, d, dtype=torch.float64)
    for n, (plane, component) in enumerate(chosen):
        if component >= 0:  # else nothing is left of that plane
            mixing[n, :, plane] = vectors[plane, :, component]
            mixing[sizes.rope_dim // 2 + n, :, plane + planes] = vectors[plane, :, component]
    maps = mixing.transpose(0, 1).repeat_interleave(weights.queries_per_kv, 0)  # [H, R, d]
    shared = torch.stack([mixing[:, n] @ double(k) for n, k in enumerate(weights.k)]).sum(0)
    per_kv = weights.queries_per_kv

    def nope(i: int) -> Tensor:
        return double(weights.k[i // per_kv]) - maps[i].T @ shared

    return Decoupled(mixing, maps, inv_freq, nope)


def compress(weights: AttentionWeights, sizes: LatentSizes, context: LayerContext) -> LatentWeights:
    """Give keys scaled to the size of the values, then PCA of both on the inputs' moments (TransMLA, section 4.3)."""
    decoupled = real_pca(weights, sizes, context)
    keys = key_rows(weights, decoupled)
    values = double(weights.v).flatten(0, 1)
    root = context.moments.root()
    sizes_k, sizes_v = (weighed(rows, root).norm(dim=1).mean() for rows in (keys, values))
    stacked = torch.cat([keys * (sizes_v / sizes_k.clamp_min(1e-200)), values])
    left = torch.linalg.svd(weighed(stacked, root), full_matrices=False)[0][:, : sizes.rank]
    down, up = left.T @ stacked, torch.linalg.pinv(stacked) @ left
    return assemble(weights, decoupled, pad(Latent(down, up, up), sizes.rank), torch.zeros_like(context.moments.mean))


METHOD = Method(
    name="rorope",
    summary="real PCA across heads per rotary plane, balanced PCA of keys and values",
    source="Meng et al. 2025 (TransMLA), arXiv:2502.07864, section 4",
    compress=compress,
    calibration="optional",
)
