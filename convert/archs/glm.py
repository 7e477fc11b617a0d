"""GLM: rotary planes of neighbouring numbers over half of the head, biases on q, k and v, a fused MLP."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="glm",
    interleaved=True,
    fused_gate_up=True,
    legacy_config={
        "rope_theta": "rope_parameters.rope_theta",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
)
