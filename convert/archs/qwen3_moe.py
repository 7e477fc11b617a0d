"""Qwen3-MoE: Qwen3 with experts in the place of the MLP, in all layers or in some."""

from dataclasses import replace

from convert_attn.convert.archs.qwen3 import ARCHITECTURE as QWEN3

ARCHITECTURE = replace(QWEN3, model_type="qwen3_moe", mlp_output=None)
