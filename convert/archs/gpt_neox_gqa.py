"""Our own GPT-NeoX with shared heads (modeling/modeling_gpt_neox_gqa.py): q, k and v fused group by group."""

from dataclasses import replace

from convert_attn.convert.archs.gpt_neox import ARCHITECTURE as GPT_NEOX
from convert_attn.convert.archs.packings import FusedGroups

ARCHITECTURE = replace(
    GPT_NEOX,
    model_type="gpt_neox_gqa",
    qkv=FusedGroups("attention.query_key_value"),
    config_kv_heads="num_key_value_heads",
    buffers=(),
)
