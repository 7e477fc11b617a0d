"""Gemma: Llama with a head size of its own and norms that store gain - 1."""

from dataclasses import replace

from convert_attn.convert.archs.base import Norm
from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="gemma", norm=Norm("input_layernorm", gain_offset=1.0), scaled_embedding=True)
