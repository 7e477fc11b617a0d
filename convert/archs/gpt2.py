"""GPT-2: learned positions, LayerNorm, one fused Conv1D for q, k and v, biases everywhere."""

from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import FusedBlocks

ARCHITECTURE = Architecture(
    model_type="gpt2",
    base="transformer.",
    block="h.{layer}.",
    qkv=FusedBlocks("attn.c_attn"),
    output="attn.c_proj",
    norm=Norm("ln_1"),
    position="learned",
    mlp_output="mlp.c_proj",
    config_kv_heads=None,
    transposed=True,
    linears=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    buffers=("attn.bias", "attn.masked_bias"),
    legacy_config={"n_ctx": "n_positions"},
)
