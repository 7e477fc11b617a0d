"""OPT: learned positions, separate projections with biases, norms before attention or (350m) behind it."""

from convert_attn.convert.archs.base import Architecture, Norm, Variant
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="opt",
    base="model.",
    block="decoder.layers.{layer}.",
    qkv=Separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.out_proj",
    norm=Norm("self_attn_layer_norm"),
    variants=(Variant({"do_layer_norm_before": (False,)}, {"norm": None, "mlp_output": None}),),
    position="learned",
    mlp_output="fc2",
    config_kv_heads=None,
)
