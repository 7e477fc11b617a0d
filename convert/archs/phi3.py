"""Phi-3: Llama with q, k and v fused into one tensor and rotary over part of the head."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA
from convert_attn.convert.archs.packings import FusedBlocks

ARCHITECTURE = replace(
    LLAMA,
    model_type="phi3",
    qkv=FusedBlocks("self_attn.qkv_proj"),
    fused_gate_up=True,
    legacy_config={
        "rope_theta": "rope_parameters.rope_theta",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
)
