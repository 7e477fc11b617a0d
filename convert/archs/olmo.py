"""OLMo: Llama with a LayerNorm that has no weight."""

from dataclasses import replace

from convert_attn.convert.archs.base import Norm
from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="olmo", clip="clip_qkv", norm=Norm("input_layernorm", weighted=False))
