"""Phi: LayerNorm, rotary position over a part of the head, biases everywhere, the MLP beside attention."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="phi",
    output="self_attn.dense",
    mlp_output="mlp.fc2",
    legacy_config={
        "rope_theta": "rope_parameters.rope_theta",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
)
