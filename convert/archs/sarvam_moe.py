"""Sarvam-MoE: GLM-4.5's class under another name."""

from dataclasses import replace

from convert_attn.convert.archs.glm4_moe import ARCHITECTURE as GLM4_MOE

ARCHITECTURE = replace(GLM4_MOE, model_type="sarvam_moe")
