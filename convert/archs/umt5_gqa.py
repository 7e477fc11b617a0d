"""Our own umT5 with shared heads (modeling/modeling_umt5_gqa.py): fewer rows of the decoder's k and v."""

from dataclasses import replace

from convert_attn.convert.archs.umt5 import ARCHITECTURE as UMT5

ARCHITECTURE = replace(UMT5, model_type="umt5_gqa", config_kv_heads="num_key_value_heads")
