"""Our own GPT-J with shared heads (modeling/modeling_gptj_gqa.py): its names, fewer rows of k and v."""

from dataclasses import replace

from convert_attn.convert.archs.gptj import ARCHITECTURE as GPTJ

ARCHITECTURE = replace(GPTJ, model_type="gptj_gqa", config_kv_heads="num_key_value_heads", buffers=())
