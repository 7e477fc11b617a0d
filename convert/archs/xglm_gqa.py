"""Our own XGLM with shared heads (modeling/modeling_xglm_gqa.py): its names, fewer rows of k and v."""

from dataclasses import replace

from convert_attn.convert.archs.xglm import ARCHITECTURE as XGLM

ARCHITECTURE = replace(XGLM, model_type="xglm_gqa", config_kv_heads="num_key_value_heads", unread=())
