"""Apertus: norms on queries and keys, and an activation with weights of its own in an MLP without a gate."""

from dataclasses import replace

from convert_attn.convert.archs.base import Norm
from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA, model_type="apertus", norm=Norm("attention_layernorm"), q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"
)
