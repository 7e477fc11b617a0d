"""Our own Bloom with shared heads (modeling/modeling_bloom_gqa.py): q, k and v fused group by group."""

from dataclasses import replace

from convert_attn.convert.archs.bloom import ARCHITECTURE as BLOOM
from convert_attn.convert.archs.packings import FusedGroups

ARCHITECTURE = replace(
    BLOOM,
    model_type="bloom_gqa",
    qkv=FusedGroups("self_attention.query_key_value"),
    config_kv_heads="num_key_value_heads",
)
