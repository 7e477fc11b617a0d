"""GPT-2 with G K/V heads: our modeling/modeling_gpt2_gqa.py, since no class of transformers is that."""

from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, SharedHeads
from convert_attn.convert.targets.base import Blueprint, Config, Target
from convert_attn.convert.targets.same_class import configure_heads

_KINDS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def _configure(blueprint: Blueprint) -> Config:
    """One number where all layers are alike, and the list beside the largest where they are not."""
    config, form = configure_heads(blueprint), blueprint.form
    if isinstance(form, SharedHeads) and form.varied:
        config[HEADS_BY_LAYER] = list(form.groups)
    return config


TARGET = Target(
    name="gpt2_gqa",
    layout="custom",
    sources=frozenset({"gpt2", "gpt2_gqa"}),
    becomes="gpt2_gqa",
    configure=_configure,
    by_layer=frozenset({"groups"}),
    classes={
        "GPT2LMHeadModel": "GPT2GQAForCausalLM",
        "GPT2GQAForCausalLM": "GPT2GQAForCausalLM",
        **{f"{family}{kind}": f"GPT2GQA{kind}" for family in ("GPT2", "GPT2GQA") for kind in _KINDS},
    },
    removed=frozenset({HEADS_BY_LAYER}),
)
