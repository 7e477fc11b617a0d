"""Our own T5 with shared heads (modeling/modeling_t5_gqa.py): fewer rows of the decoder's k and v."""

from dataclasses import replace

from convert_attn.convert.archs.t5 import ARCHITECTURE as T5

ARCHITECTURE = replace(T5, model_type="t5_gqa", config_kv_heads="num_key_value_heads")
