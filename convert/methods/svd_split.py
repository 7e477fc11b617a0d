"""Plain low-rank factorisation, keys and values apart, each with half of the latent."""

from __future__ import annotations

import torch

from convert_attn.convert.maths.head_sharing import double
from convert_attn.convert.maths.latent_basis import Latent, pad
from convert_attn.convert.methods.base import LayerContext, Method
from convert_attn.convert.methods.latent_parts import assemble, key_rows
from convert_attn.convert.methods.rorope import real_pca
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentSizes, LatentWeights


def compress(weights: AttentionWeights, sizes: LatentSizes, context: LayerContext) -> LatentWeights:
    """Give one truncated SVD of Wk and one of Wv; the latent is both halves one after the other.

    A latent [ck; cv] would need up_k to be zero on cv. One basis for the span of both halves is at least as good at
    the same size, and is what a class with one up-projection for keys and values can hold.
    """
    decoupled = real_pca(weights, sizes, context)
    keys = key_rows(weights, decoupled)
    values = double(weights.v).flatten(0, 1)
    half = sizes.rank // 2
    parts = [
        torch.linalg.svd(rows, full_matrices=False)[2][:rank]
        for rows, rank in ((keys, half), (values, sizes.rank - half))
    ]
    basis = torch.linalg.qr(torch.cat(parts).T)[0].T
    latent = pad(Latent(basis, basis.T, basis.T), sizes.rank)
    return assemble(weights, decoupled, latent, torch.zeros_like(context.moments.mean))


METHOD = Method(
    name="svd-split",
    summary="truncated SVDs of keys and of values, half of the latent each",
    source="Ji et al. 2025 (MHA2MLA), arXiv:2502.14837, section 3.2 (split)",
    compress=compress,
)
