"""GPT-NeoX (Pythia): q, k and v fused head by head, rotary over a part of the head, two norms side by side."""

from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import FusedHeads

ARCHITECTURE = Architecture(
    model_type="gpt_neox",
    base="gpt_neox.",
    block="layers.{layer}.",
    qkv=FusedHeads("attention.query_key_value"),
    output="attention.dense",
    norm=Norm("input_layernorm"),
    position="rope",
    mlp_output="mlp.dense_4h_to_h",
    config_kv_heads=None,
    buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
    legacy_config={
        "rotary_emb_base": "rope_parameters.rope_theta",
        "rotary_pct": "rope_parameters.partial_rotary_factor",
    },
)
