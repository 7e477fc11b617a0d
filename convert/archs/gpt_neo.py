"""GPT-Neo: learned positions, scores as they are, a local window in every other layer, biases on the output alone."""

from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="gpt_neo",
    base="transformer.",
    block="h.{layer}.",
    qkv=Separate("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    output="attn.attention.out_proj",
    norm=Norm("ln_1"),
    position="learned",
    mlp_output="mlp.c_proj",
    config_kv_heads=None,
    scale="one",
    window_key="window_size",
    local_layers="attention_layers",
    buffers=("attn.attention.bias", "attn.attention.masked_bias"),
)
