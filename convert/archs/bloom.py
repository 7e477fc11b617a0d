"""Bloom: ALiBi, q, k and v fused head by head, and attention that adds the residual stream by itself."""

from convert_attn.convert.archs.base import Architecture, Norm, Variant
from convert_attn.convert.archs.packings import FusedHeads

ARCHITECTURE = Architecture(
    model_type="bloom",
    base="transformer.",
    block="h.{layer}.",
    qkv=FusedHeads("self_attention.query_key_value"),
    output="self_attention.dense",
    norm=Norm("input_layernorm"),
    position="alibi",
    mlp_output="mlp.dense_4h_to_h",
    adds_stream=True,
    # what is added there and behind the MLP is not the stream, but its norm
    variants=(
        Variant({"apply_residual_connection_post_layernorm": (True,)}, {"scaled_residual": True, "mlp_output": None}),
    ),
    context_key="seq_length",
    context=2048,  # what Bloom was trained on (arXiv:2211.05100, section 3.4), where config.json does not say
    config_kv_heads=None,
)
