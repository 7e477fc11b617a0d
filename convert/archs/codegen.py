"""CodeGen: GPT-J with q, v and k fused in four shards."""

from dataclasses import replace

from convert_attn.convert.archs.gptj import ARCHITECTURE as GPTJ
from convert_attn.convert.archs.packings import FusedShards

ARCHITECTURE = replace(
    GPTJ,
    model_type="codegen",
    qkv=FusedShards("attn.qkv_proj"),
    buffers=("attn.causal_mask", "attn.bias", "attn.masked_bias", "attn.embed_positions"),
)
