"""SmolLM3: Llama in which some layers, by default every fourth, know of no position."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="smollm3")
