"""StableLM: LayerNorm, rotary position over a part of the head, an MLP that may stand beside attention."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="stablelm",
    legacy_config={
        "rope_theta": "rope_parameters.rope_theta",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
)
