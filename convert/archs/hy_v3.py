"""Hunyuan 3: norms on queries and keys, experts in all layers but the first ones."""

from dataclasses import replace

from convert_attn.convert.archs.qwen3 import ARCHITECTURE as QWEN3

ARCHITECTURE = replace(QWEN3, model_type="hy_v3", mlp_output=None)
