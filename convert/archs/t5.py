"""T5: scores gain a number for the distance, by a table of the first block, and are not scaled; norms in front."""

from convert_attn.convert.archs.base import Architecture, CrossAttention, Norm
from convert_attn.convert.archs.packings import Separate

_SELF, _CROSS = "layer.0.SelfAttention", "layer.1.EncDecAttention"

ARCHITECTURE = Architecture(
    model_type="t5",
    base="",
    block="decoder.block.{layer}.",
    qkv=Separate(f"{_SELF}.q", f"{_SELF}.k", f"{_SELF}.v"),
    output=f"{_SELF}.o",
    norm=Norm("layer.0.layer_norm"),
    position="relative",
    table=f"{_SELF}.relative_attention_bias",
    mlp_output="layer.2.DenseReluDense.wo",
    scale="one",
    cross=CrossAttention(
        qkv=Separate(f"{_CROSS}.q", f"{_CROSS}.k", f"{_CROSS}.v"),
        output=f"{_CROSS}.o",
        norm=Norm("layer.1.layer_norm"),
        encoder_norm=Norm("encoder.final_layer_norm"),
        layers="num_decoder_layers",
        heads="num_heads",
        hands_on=(2, 5),
    ),
    config_kv_heads=None,
    context_key="",
    context=512,
    buffers=("layer.1.EncDecAttention.relative_attention_bias.weight",),
)
