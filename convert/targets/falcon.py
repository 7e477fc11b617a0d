"""Falcon with one K/V head: its own class, which then caches one, where its blocks are those of the smaller Falcons."""

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, SharedHeads
from convert_attn.convert.targets.base import Blueprint, Config, Target
from convert_attn.convert.targets.shared_heads import LABELLED


def _configure(blueprint: Blueprint) -> Config:
    """Falcon's class has no place for a head's size, and none of its own for the number of K/V heads, which is read."""
    return {"multi_query": True, "new_decoder_architecture": False, "num_kv_heads": 1, "num_key_value_heads": 1}


def _takes(arch: Architecture) -> bool:
    """Tell whether blocks have no LayerNorm of attention's own, which those with one K/V head do not have."""
    return arch.norm is not None and arch.norm.name == "input_layernorm"


TARGET = Target(
    name="falcon",
    layout="native",
    sources=frozenset({"falcon", "falcon_gqa"}),
    becomes="falcon",
    configure=_configure,
    takes=_takes,
    holds=lambda sizes, form: form == SharedHeads.of(1, sizes.num_layers),
    classes={f"{family}{kind}": f"Falcon{kind}" for family in ("Falcon", "FalconGQA") for kind in LABELLED},
    removed=frozenset({HEADS_BY_LAYER, "head_dim"}),
)
