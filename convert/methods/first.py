"""The first head of each group stands for all of it: an ablation of the GQA paper."""

from __future__ import annotations

from convert_attn.convert.methods.base import LayerContext, Method
from convert_attn.convert.weights.attention import AttentionWeights, map_kv_heads


def share(weights: AttentionWeights, groups: int, context: LayerContext) -> AttentionWeights:
    """Give shared K and V are the group's first head."""
    return map_kv_heads(weights, lambda heads: heads.unflatten(0, (groups, -1))[:, 0])


METHOD = Method(
    name="first",
    summary="the group's first key and value head",
    source="Ainslie et al. 2023 (GQA), arXiv:2305.13245, section 3.3 (ablation)",
    share=share,
    literal=True,
)
