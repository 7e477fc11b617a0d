"""Llama and its relatives with a latent cache: our modeling/modeling_llama_mla.py."""

from convert_attn.convert.class_facts import typed_config
from convert_attn.convert.form import LatentCache
from convert_attn.convert.targets.base import Blueprint, Config, Target
from convert_attn.convert.targets.latent import latent_config, latent_shapes, latent_tensors

_ATTENTION = "self_attn."
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "gemma": "Gemma", "phi3": "Phi3"}
# what the sources' configs and ours mean by the same name
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "mlp_bias",
    "attention_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "num_labels",
    "id2label",
    "label2id",
)


def block_config(blueprint: Blueprint) -> Config:
    """The source's settings, with the defaults that its own class fills in."""
    typed = typed_config(blueprint.config, blueprint.arch.model_type)
    config: Config = {name: getattr(typed, name) for name in _SHARED if getattr(typed, name, None) is not None}
    if blueprint.sizes.windows and blueprint.sizes.windows[0] is not None:
        config["sliding_window"] = blueprint.sizes.windows[0]
    config["pad_token_id"] = typed.pad_token_id
    if "id2label" not in blueprint.config:
        config = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "num_labels")}
    for name in ("dtype", "torch_dtype"):
        if name in blueprint.config:
            config["dtype"] = blueprint.config[name]
    return config


def _configure(blueprint: Blueprint) -> Config:
    arch = blueprint.arch
    return (
        block_config(blueprint)
        | latent_config(blueprint)
        | {
            "norm_gain_offset": arch.norm.gain_offset,
            "embedding_multiplier": blueprint.sizes.hidden_size**0.5 if arch.scaled_embedding else 1.0,
            "fused_gate_up": arch.fused_gate_up,
        }
    )


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
    fresh_config=True,
)
