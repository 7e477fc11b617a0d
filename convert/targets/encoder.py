"""Encoders with G K/V heads: our modeling/modeling_<family>_gqa.py, since no class of transformers is that."""

from convert_attn import modeling
from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, SharedHeads
from convert_attn.convert.targets.base import Blueprint, Config, Target


def _configure(blueprint: Blueprint) -> Config:
    """One number where all layers are alike, and the list beside the largest where they are not."""
    form = blueprint.form
    if not isinstance(form, SharedHeads):
        return {}
    config: Config = {"num_key_value_heads": max(form.groups)}
    return config | ({HEADS_BY_LAYER: list(form.groups)} if form.varied else {})


def encoder_target(source: str, result: str, stock: str) -> Target:
    """Make the target of one family.

    Args:
        source, result: model types.
        stock: what the names of transformers' classes begin with.
    """
    family = modeling.FAMILIES[result]
    kinds = [family.class_name(auto).removeprefix(family.prefix) for auto in family.auto_models]
    return Target(
        name=result,
        layout="custom",
        sources=frozenset({source, result}),
        becomes=result,
        configure=_configure,
        by_layer=frozenset({"groups"}),
        classes={f"{prefix}{kind}": f"{family.prefix}{kind}" for prefix in (stock, family.prefix) for kind in kinds},
        removed=frozenset({HEADS_BY_LAYER}),
    )
