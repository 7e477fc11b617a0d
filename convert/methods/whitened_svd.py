"""Low-rank factorisation of keys and values on the inputs they see: whitened by the inputs' second moments."""

from __future__ import annotations

import torch

from convert_attn.convert.maths.head_sharing import double, psd_sqrt
from convert_attn.convert.maths.latent_basis import Latent, pad
from convert_attn.convert.methods.base import LayerContext, Method
from convert_attn.convert.methods.latent_parts import assemble, key_rows
from convert_attn.convert.methods.rorope import real_pca
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentSizes, LatentWeights

_SMALLEST = 1e-6  # of the largest singular value of the moments' root: smaller ones are not inverted


def compress(weights: AttentionWeights, sizes: LatentSizes, context: LayerContext) -> LatentWeights:
    """Truncated SVD of [Wk; Wv] S with S^2 = E[x x^T]; under rotary position of what `rorope` leaves position-free."""
    decoupled = real_pca(weights, sizes, context)
    stacked = torch.cat([key_rows(weights, decoupled), double(weights.v).flatten(0, 1)])
    root = psd_sqrt(context.moments.matrix())
    basis = torch.linalg.svd(stacked @ root, full_matrices=False)[2][: sizes.rank]  # [r, D]
    inverse = torch.linalg.pinv(root, hermitian=True, rtol=_SMALLEST)
    up = root @ basis.T
    latent = pad(Latent(basis @ inverse, up, up), sizes.rank)
    return assemble(weights, decoupled, latent, torch.zeros_like(context.moments.mean))


METHOD = Method(
    name="whitened-svd",
    summary="truncated SVD of the key and value weights, whitened by the inputs' second moments",
    source="Wang et al. 2024 (SVD-LLM), arXiv:2403.07378, section 3.1, as CARE uses it for MLA",
    compress=compress,
    calibration="optional",
)
