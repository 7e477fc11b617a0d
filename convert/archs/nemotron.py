"""Nemotron: a LayerNorm that stores its weight less one, part rotary position, a squared ReLU without a gate."""

from dataclasses import replace

from convert_attn.convert.archs.base import Norm
from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="nemotron",
    norm=Norm("input_layernorm", gain_offset=1.0),
    legacy_config={
        "rope_theta": "rope_parameters.rope_theta",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
)
