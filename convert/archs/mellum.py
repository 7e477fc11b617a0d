"""Mellum: Qwen3-MoE with windows, and other frequencies, in some layers."""

from dataclasses import replace

from convert_attn.convert.archs.qwen3_moe import ARCHITECTURE as QWEN3_MOE

ARCHITECTURE = replace(QWEN3_MOE, model_type="mellum", legacy_config={})
