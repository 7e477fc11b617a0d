"""Our own mBART with shared heads (modeling/modeling_mbart_gqa.py): fewer rows of the decoder's k and v."""

from dataclasses import replace

from convert_attn.convert.archs.mbart import ARCHITECTURE as MBART

ARCHITECTURE = replace(MBART, model_type="mbart_gqa", config_kv_heads="num_key_value_heads")
