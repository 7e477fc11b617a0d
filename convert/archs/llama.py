"""Llama: RoPE, RMSNorm, separate projections, biases only where `attention_bias` says so."""

from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="llama",
    base="model.",
    block="layers.{layer}.",
    qkv=Separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    norm=Norm("input_layernorm"),
    position="rope",
    buffers=("self_attn.rotary_emb.inv_freq",),
    legacy_config={"rope_theta": "rope_parameters.rope_theta"},
)
