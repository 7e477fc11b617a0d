"""GPT-2 with G K/V heads: our modeling/modeling_gpt2_gqa.py, since no class of transformers is that."""

from convert_attn.convert.geometry import Geometry
from convert_attn.convert.targets.base import Config, Target

_KINDS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def _configure(config: Config, geometry: Geometry, groups: int) -> Config:
    return {"num_key_value_heads": groups, "head_dim": geometry.head_dim}


TARGET = Target(
    name="gpt2_gqa",
    layout="custom",
    sources=frozenset({"gpt2", "gpt2_gqa"}),
    becomes="gpt2_gqa",
    configure=_configure,
    holds=lambda heads, groups: True,
    classes={
        "GPT2LMHeadModel": "GPT2GQAForCausalLM",
        "GPT2GQAForCausalLM": "GPT2GQAForCausalLM",
        **{f"{family}{kind}": f"GPT2GQA{kind}" for family in ("GPT2", "GPT2GQA") for kind in _KINDS},
    },
)
