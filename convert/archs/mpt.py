"""MPT: ALiBi, q, k and v fused, no biases anywhere; some have a bound on queries, keys and values."""

from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import FusedBlocks

ARCHITECTURE = Architecture(
    model_type="mpt",
    base="transformer.",
    block="blocks.{layer}.",
    qkv=FusedBlocks("attn.Wqkv"),
    output="attn.out_proj",
    norm=Norm("norm_1"),
    position="alibi",
    mlp_output="ffn.down_proj",
    clip="attn_config.clip_qkv",
    context_key="max_seq_len",
    config_kv_heads=None,
)
