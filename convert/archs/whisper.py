"""Whisper: mBART's blocks behind an encoder of sounds; keys have no bias."""

from convert_attn.convert.archs.base import Architecture, CrossAttention, Norm
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="whisper",
    base="model.",
    block="decoder.layers.{layer}.",
    qkv=Separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.out_proj",
    norm=Norm("self_attn_layer_norm"),
    position="learned",
    mlp_output="fc2",
    cross=CrossAttention(
        qkv=Separate("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"),
        output="encoder_attn.out_proj",
        norm=Norm("encoder_attn_layer_norm"),
        reads="sounds",
        encoder_norm=Norm("encoder.layer_norm"),
    ),
    config_kv_heads=None,
    context_key="max_target_positions",
)
