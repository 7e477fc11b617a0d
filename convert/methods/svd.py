"""Plain low-rank factorisation of the key and value weights."""

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
    """Give truncated SVD of the stacked [Wk; Wv]; under rotary position of what `rorope` leaves position-free."""
    decoupled = real_pca(weights, sizes, context)
    keys = key_rows(weights, decoupled)
    stacked = torch.cat([keys, double(weights.v).flatten(0, 1)])
    basis = torch.linalg.svd(stacked, full_matrices=False)[2][: sizes.rank]
    latent = pad(Latent(basis, basis.T, basis.T), sizes.rank)
    return assemble(weights, decoupled, latent, torch.zeros_like(context.moments.mean))


METHOD = Method(
    name="svd",
    summary="truncated SVD of the stacked key and value weights",
    source="Ji et al. 2025 (MHA2MLA), arXiv:2502.14837, section 3.2 (joint)",
    compress=compress,
)
