"""Plain averaging: what papers mean by GQA conversion."""

from __future__ import annotations

import torch
from torch import Tensor

from convert_attn.convert.methods.base import LayerContext, Method
from convert_attn.convert.weights.attention import AttentionWeights, map_kv_heads


def share(weights: AttentionWeights, groups: int, context: LayerContext) -> AttentionWeights:
    """Give shared K and V are the averages of the group's heads, weights and biases alike."""

    def average(heads: Tensor) -> Tensor:
        """Give [K, ...] -> [G, ...]."""
        mean: Tensor = heads.unflatten(0, (groups, -1)).mean(1, dtype=torch.float64)
        return mean.to(heads.dtype)

    return map_kv_heads(weights, average)


METHOD = Method(
    name="mean",
    summary="average of the group's key and value heads",
    source="Ainslie et al. 2023 (GQA), arXiv:2305.13245, section 2.1",
    share=share,
    literal=True,
)
