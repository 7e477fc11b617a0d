"""Encoder-decoders with G K/V heads in the decoder: our modeling/modeling_<family>_gqa.py; no stock class is that."""

from convert_attn import modeling
from convert_attn.convert.archs.cache_form import SharedHeads
from convert_attn.convert.targets.base import Blueprint, Config, Target


def _configure(blueprint: Blueprint) -> Config:
    """One number, for all attention of the decoder."""
    form = blueprint.form
    return {"num_key_value_heads": max(form.groups)} if isinstance(form, SharedHeads) else {}


def seq2seq_target(source: str, stock: str, generates: str = "ForConditionalGeneration") -> Target:
    """Make the target of one family.

    Args:
        source: model type; ours is <source>_gqa.
        stock: what the names of transformers' classes begin with.
        generates: the rest of the name of that which generates.
    """
    own = f"{source}_gqa"
    family = modeling.FAMILIES[own]
    classes = {f"{family.prefix}{kind}": f"{family.prefix}{kind}" for kind in ("Model", "ForConditionalGeneration")}
    classes |= {f"{stock}Model": f"{family.prefix}Model"}
    classes |= {f"{stock}{generates}": f"{family.prefix}ForConditionalGeneration"}
    return Target(
        name=own,
        layout="custom",
        sources=frozenset({source, own}),
        becomes=own,
        configure=_configure,
        classes=classes,
    )
