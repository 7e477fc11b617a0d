"""Our own Persimmon with shared heads (modeling/modeling_persimmon_gqa.py): q, k and v fused group by group."""

from dataclasses import replace

from convert_attn.convert.archs.packings import FusedGroups
from convert_attn.convert.archs.persimmon import ARCHITECTURE as PERSIMMON

ARCHITECTURE = replace(
    PERSIMMON,
    model_type="persimmon_gqa",
    qkv=FusedGroups("self_attn.query_key_value"),
    config_kv_heads="num_key_value_heads",
)
