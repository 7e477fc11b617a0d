"""Solar Open: GLM-4.5 without biases."""

from dataclasses import replace

from convert_attn.convert.archs.glm4_moe import ARCHITECTURE as GLM4_MOE

ARCHITECTURE = replace(GLM4_MOE, model_type="solar_open", q_norm="", k_norm="")
