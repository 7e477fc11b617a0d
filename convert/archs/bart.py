"""BART: an encoder and a decoder with norms behind attention and MLP, learned positions, biases everywhere."""

from convert_attn.convert.archs.base import Architecture, CrossAttention, Norm
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="bart",
    base="model.",
    block="decoder.layers.{layer}.",
    qkv=Separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.out_proj",
    norm=None,
    position="learned",
    mlp_output=None,
    cross=CrossAttention(
        qkv=Separate("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"),
        output="encoder_attn.out_proj",
        norm=Norm("self_attn_layer_norm"),
        post_norm=True,
    ),
    config_kv_heads=None,
    unread=("encoder.version", "decoder.version"),
)
