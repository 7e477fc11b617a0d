"""Our own GPT-2 with grouped heads (modeling/modeling_gpt2_gqa.py): GPT-2's names, fewer K/V columns."""

from dataclasses import replace

from convert_attn.convert.archs.gpt2 import ARCHITECTURE as GPT2

ARCHITECTURE = replace(GPT2, model_type="gpt2_gqa", config_kv_heads="num_key_value_heads", buffers=())
