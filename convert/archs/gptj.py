"""GPT-J: rotary planes of neighbouring numbers over a part of the head, attention and MLP side by side, few biases."""

from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="gptj",
    base="transformer.",
    block="h.{layer}.",
    qkv=Separate("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    output="attn.out_proj",
    norm=Norm("ln_1"),
    position="rope",
    interleaved=True,
    mlp_output="mlp.fc_out",
    config_kv_heads=None,
    buffers=("attn.bias", "attn.masked_bias", "attn.embed_positions"),
)
