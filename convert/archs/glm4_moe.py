"""GLM-4.5: rotary position over a part of the head, norms on queries and keys where the config says so, experts."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="glm4_moe",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    mlp_output=None,
    legacy_config={
        "rope_theta": "rope_parameters.rope_theta",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
)
