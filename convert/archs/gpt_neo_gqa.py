"""Our own GPT-Neo with shared heads (modeling/modeling_gpt_neo_gqa.py): its names, fewer rows of k and v."""

from dataclasses import replace

from convert_attn.convert.archs.gpt_neo import ARCHITECTURE as GPT_NEO

ARCHITECTURE = replace(GPT_NEO, model_type="gpt_neo_gqa", config_kv_heads="num_key_value_heads", buffers=())
