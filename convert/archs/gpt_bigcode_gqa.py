"""Our own GPTBigCode with shared heads (modeling/modeling_gpt_bigcode_gqa.py): its names, its layout."""

from dataclasses import replace

from convert_attn.convert.archs.gpt_bigcode import ARCHITECTURE as GPT_BIGCODE

ARCHITECTURE = replace(GPT_BIGCODE, model_type="gpt_bigcode_gqa", config_kv_heads="num_key_value_heads", buffers=())
