"""Helium: Llama with rotary planes of neighbouring numbers."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="helium", interleaved=True)
