"""Qwen2: Llama with biases on q, k and v, none on the output."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="qwen2")
