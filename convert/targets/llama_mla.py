"""Llama and its relatives with a latent cache: our modeling/modeling_llama_mla.py."""

from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.targets.base import Blueprint, Config, Target
from convert_attn.convert.targets.latent import latent_config, latent_shapes, latent_tensors

_ATTENTION = "self_attn."
FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "gemma": "Gemma",
    "phi3": "Phi3",
    "glm": "Glm",
    "smollm3": "SmolLM3",
    "helium": "Helium",
    "ernie4_5": "Ernie4_5",
    "seed_oss": "SeedOss",
    "internlm3": "Llama",
    "iquestcoder": "Llama",
}


def _configure(blueprint: Blueprint) -> Config:
    arch, sizes = blueprint.arch, blueprint.sizes
    return latent_config(blueprint) | {
        "norm_gain_offset": arch.norm.gain_offset if arch.norm else 0.0,
        "embedding_multiplier": sizes.hidden_size**0.5 if arch.scaled_embedding else 1.0,
        "fused_gate_up": arch.fused_gate_up,
        "mlp_bias": sizes.outside_biases,
        "sliding_window": sizes.windows[0] if sizes.windows else None,
    }


def renamed_classes(result: str) -> dict[str, str]:
    """LlamaForCausalLM -> <result>ForCausalLM and so on, for every family."""
    kinds = ("Model", "ForCausalLM", "ForSequenceClassification")
    return {f"{family}{kind}": f"{result}{kind}" for family in FAMILIES.values() for kind in kinds}


TARGET = Target(
    name="llama_mla",
    layout="custom",
    sources=frozenset(FAMILIES),
    becomes="llama_mla",
    configure=_configure,
    classes=renamed_classes("LlamaMLA"),
    shapes=lambda blueprint, layer: latent_shapes(blueprint, layer, _ATTENTION),
    tensors=lambda blueprint, converted, layer: latent_tensors(blueprint, converted, _ATTENTION),
    form=LatentCache,
    by_layer=frozenset({"rank"}),
    fresh_config=True,
)
