"""The source's own class, with fewer K/V heads: what every RoPE family in transformers can hold."""

from convert_attn.convert.archs.cache_form import SharedHeads
from convert_attn.convert.targets.base import Blueprint, Config, Target


def configure_heads(blueprint: Blueprint) -> Config:
    """head_dim is written out: readers that derive it from the K/V heads would get it wrong."""
    groups = max(blueprint.form.groups) if isinstance(blueprint.form, SharedHeads) else None
    return {"num_key_value_heads": groups, "head_dim": blueprint.sizes.head_dim}


TARGET = Target(
    name="same class",
    layout="native",
    sources=frozenset(),
    becomes=None,
    configure=configure_heads,
)
