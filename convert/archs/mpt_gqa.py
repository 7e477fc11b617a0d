"""Our own MPT with shared heads (modeling/modeling_mpt_gqa.py): its names, fewer rows of k and v."""

from dataclasses import replace

from convert_attn.convert.archs.mpt import ARCHITECTURE as MPT

ARCHITECTURE = replace(MPT, model_type="mpt_gqa", config_kv_heads="num_key_value_heads")
