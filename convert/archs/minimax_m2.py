"""MiniMax-M2: norms on queries and keys over all heads, rotary position over a part of the head, experts."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="minimax_m2",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    mlp_output=None,
    legacy_config={
        "rope_theta": "rope_parameters.rope_theta",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
)
