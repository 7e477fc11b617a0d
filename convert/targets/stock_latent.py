"""Families whose stock blocks take latent attention in place of their own (modeling/stock_latent.py)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, LatentCache
from convert_attn.convert.targets.base import Blueprint, Converted, Target
from convert_attn.convert.targets.latent import latent_config, latent_shapes, latent_tensors
from convert_attn.convert.weights.latent import LatentWeights

KINDS = ("Model", "ForCausalLM")


def scaled_tensors(blueprint: Blueprint, converted: Converted, layer: int) -> dict[str, Tensor]:
    """Give a layer's tensors. The class has the first layer's scale of scores; a layer's query has what differs."""
    rest = blueprint.sizes.scale(layer) / blueprint.sizes.scale(0)
    if rest != 1 and isinstance(converted, LatentWeights):
        bias, rope_bias = converted.q_nope_bias, converted.q_rope_bias
        converted = replace(
            converted,
            q_nope=converted.q_nope * rest,
            q_rope=converted.q_rope * rest,
            q_nope_bias=None if bias is None else bias * rest,
            q_rope_bias=None if rope_bias is None else rope_bias * rest,
        )
    return latent_tensors(blueprint, converted, f"{blueprint.arch.mixer}.")


def stock_latent(
    model_type: str, prefix: str, kinds: Sequence[str] = KINDS, computes: Collection[str] = ("windows by layer",)
) -> Target:
    """Give the target of one family.

    Args:
        model_type: of the family, or of its class with shared heads; ours is <model_type>_mla.
        prefix: of its class names; ours is <prefix>MLA.
        kinds: the rest of the class names.
        computes: see `Target`.
    """
    own = f"{model_type}_mla"
    return Target(
        name=own,
        layout="custom",
        sources=frozenset({model_type, f"{model_type}_gqa"}),
        becomes=own,
        configure=latent_config,
        classes={f"{family}{kind}": f"{prefix}MLA{kind}" for family in (prefix, f"{prefix}GQA") for kind in kinds},
        shapes=lambda blueprint, layer: latent_shapes(blueprint, layer, f"{blueprint.arch.mixer}."),
        tensors=scaled_tensors,
        form=LatentCache,
        by_layer=frozenset({"rank"}),
        removed=frozenset({HEADS_BY_LAYER}),
        computes=frozenset(computes),
    )
