"""Cohere: rotary planes of neighbouring numbers, attention and MLP side by side behind one LayerNorm."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA, model_type="cohere", interleaved=True, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"
)
