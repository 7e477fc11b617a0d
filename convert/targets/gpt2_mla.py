"""GPT-2 with a latent cache: our modeling/modeling_gpt2_mla.py."""

from dataclasses import replace

from torch import Tensor

from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, LatentCache
from convert_attn.convert.targets.base import Blueprint, Config, Converted, Target
from convert_attn.convert.targets.latent import latent_config, latent_shapes, latent_tensors
from convert_attn.convert.weights.latent import LatentWeights

_ATTENTION = "attn."


def _configure(blueprint: Blueprint) -> Config:
    return latent_config(blueprint)


def _tensors(blueprint: Blueprint, converted: Converted, layer: int) -> dict[str, Tensor]:
    """GPT-2 can divide scores by the layer's number; the class has the first layer's scale, the query the rest."""
    rest = blueprint.sizes.scale(layer) / blueprint.sizes.scale(0)
    if rest != 1 and isinstance(converted, LatentWeights):
        bias = converted.q_nope_bias
        converted = replace(
            converted,
            q_nope=converted.q_nope * rest,
            q_nope_bias=None if bias is None else bias * rest,
        )
    return latent_tensors(blueprint, converted, _ATTENTION)


TARGET = Target(
    name="gpt2_mla",
    layout="custom",
    sources=frozenset({"gpt2", "gpt2_gqa"}),
    becomes="gpt2_mla",
    configure=_configure,
    classes={
        f"{family}{kind}": f"GPT2MLA{result}"
        for family in ("GPT2", "GPT2GQA")
        for kind, result in (
            ("Model", "Model"),
            ("LMHeadModel", "ForCausalLM"),
            ("ForCausalLM", "ForCausalLM"),
            ("ForSequenceClassification", "ForSequenceClassification"),
        )
    },
    shapes=lambda blueprint, layer: latent_shapes(blueprint, layer, _ATTENTION),
    tensors=_tensors,
    form=LatentCache,
    by_layer=frozenset({"rank"}),
    removed=frozenset(
        {HEADS_BY_LAYER, "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"}
    ),
)
