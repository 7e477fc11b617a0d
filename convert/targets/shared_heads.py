"""Families without a class for fewer K/V heads: a subclass of their own (modeling/shared_heads.py)."""

from collections.abc import Sequence

from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, SharedHeads
from convert_attn.convert.targets.base import Blueprint, Config, Target
from convert_attn.convert.targets.same_class import configure_heads

LABELLED = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
KINDS = (*LABELLED, "ForQuestionAnswering")


def _configure(blueprint: Blueprint) -> Config:
    """One number where all layers are alike, and the list beside the largest where they are not."""
    config, form = configure_heads(blueprint), blueprint.form
    if isinstance(form, SharedHeads) and form.varied:
        config[HEADS_BY_LAYER] = list(form.groups)
    return config


def shared_heads(model_type: str, prefix: str, kinds: Sequence[str] = KINDS) -> Target:
    """Give the target of one family.

    Args:
        model_type: of the family; ours is <model_type>_gqa.
        prefix: of its class names; ours is <prefix>GQA.
        kinds: the rest of the class names.
    """
    own = f"{model_type}_gqa"
    return Target(
        name=own,
        layout="custom",
        sources=frozenset({model_type, own}),
        becomes=own,
        configure=_configure,
        by_layer=frozenset({"groups"}),
        classes={f"{family}{kind}": f"{prefix}GQA{kind}" for family in (prefix, f"{prefix}GQA") for kind in kinds},
        removed=frozenset({HEADS_BY_LAYER}),
    )
