"""GPT-2 with G K/V heads: our modeling/modeling_gpt2_gqa.py, since no class of transformers is that."""

from convert_attn.convert.targets.base import Target
from convert_attn.convert.targets.same_class import configure_heads

_KINDS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")

TARGET = Target(
    name="gpt2_gqa",
    layout="custom",
    sources=frozenset({"gpt2", "gpt2_gqa"}),
    becomes="gpt2_gqa",
    configure=configure_heads,
    classes={
        "GPT2LMHeadModel": "GPT2GQAForCausalLM",
        "GPT2GQAForCausalLM": "GPT2GQAForCausalLM",
        **{f"{family}{kind}": f"GPT2GQA{kind}" for family in ("GPT2", "GPT2GQA") for kind in _KINDS},
    },
)
