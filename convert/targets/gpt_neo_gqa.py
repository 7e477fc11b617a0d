"""GPT-Neo with G K/V heads: our modeling/modeling_gpt_neo_gqa.py, since no class of transformers is that."""

from convert_attn.convert.targets.shared_heads import KINDS, shared_heads

TARGET = shared_heads("gpt_neo", "GPTNeo", [kind for kind in KINDS if kind != "ForQuestionAnswering"])
