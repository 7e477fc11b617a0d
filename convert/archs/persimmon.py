"""Persimmon: q, k and v fused head by head, LayerNorms on queries and keys, rotary over a part of the head."""

from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import FusedHeads

ARCHITECTURE = Architecture(
    model_type="persimmon",
    base="model.",
    block="layers.{layer}.",
    qkv=FusedHeads("self_attn.query_key_value"),
    output="self_attn.dense",
    norm=Norm("input_layernorm"),
    position="rope",
    mlp_output="mlp.dense_4h_to_h",
    q_norm="self_attn.q_layernorm",
    k_norm="self_attn.k_layernorm",
    config_kv_heads=None,
    legacy_config={
        "rope_theta": "rope_parameters.rope_theta",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
)
