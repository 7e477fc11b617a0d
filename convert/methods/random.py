"""Fresh random heads: the GQA paper's floor, what is left when nothing of K and V is kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convert_attn.convert.methods.base import LayerContext, Method
from convert_attn.convert.weights.attention import AttentionWeights, map_kv_heads


def share(weights: AttentionWeights, groups: int, context: LayerContext) -> AttentionWeights:
    """Give shared K and V are drawn from a normal with the mean and deviation of the heads they replace."""

    def draw(heads: Tensor) -> Tensor:
        """Give moments of all K heads, G fresh heads."""
        noise = torch.randn(groups, *heads.shape[1:], generator=context.generator, dtype=torch.float64)
        return (noise * heads.to(torch.float64).std(correction=0) + heads.mean(dtype=torch.float64)).to(heads.dtype)

    drawn = map_kv_heads(replace(weights, k_gain=None, k_shift=None), draw)
    of_norm = (weights.k_gain, weights.k_shift)
    gain, shift = (None if part is None else part.unflatten(0, (groups, -1)).mean(1) for part in of_norm)
    return replace(drawn, k_gain=gain, k_shift=shift)


METHOD = Method(
    name="random",
    summary="fresh random heads of the same mean and deviation (seeded)",
    source="Ainslie et al. 2023 (GQA), arXiv:2305.13245, section 3.3 (ablation)",
    share=share,
    literal=True,
    draws=True,
)
