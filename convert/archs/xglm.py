"""XGLM: sinusoidal positions added to embeddings, separate projections with biases."""

from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="xglm",
    base="model.",
    block="layers.{layer}.",
    qkv=Separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.out_proj",
    norm=Norm("self_attn_layer_norm"),
    position="learned",
    mlp_output="fc2",
    config_kv_heads=None,
    unread=("embed_positions.weights",),
)
