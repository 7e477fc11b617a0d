"""Qwen2-MoE: Qwen2 with experts, and one that all tokens share, in the place of the MLP."""

from dataclasses import replace

from convert_attn.convert.archs.qwen2 import ARCHITECTURE as QWEN2

ARCHITECTURE = replace(QWEN2, model_type="qwen2_moe", mlp_output=None)
