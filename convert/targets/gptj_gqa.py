"""GPT-J with G K/V heads: our modeling/modeling_gptj_gqa.py, since no class of transformers is that."""

from convert_attn.convert.targets.shared_heads import KINDS, shared_heads

# (its own head for questions loses the cache before transformers 5.24)
LEFT_OUT = ("ForTokenClassification", "ForQuestionAnswering")
TARGET = shared_heads("gptj", "GPTJ", [kind for kind in KINDS if kind not in LEFT_OUT])
