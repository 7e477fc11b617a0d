"""Our own mT5 with shared heads (modeling/modeling_mt5_gqa.py): fewer rows of the decoder's k and v."""

from dataclasses import replace

from convert_attn.convert.archs.mt5 import ARCHITECTURE as MT5

ARCHITECTURE = replace(MT5, model_type="mt5_gqa", config_kv_heads="num_key_value_heads")
