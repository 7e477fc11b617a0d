"""Cohere 2 with experts in the place of its MLP."""

from dataclasses import replace

from convert_attn.convert.archs.cohere2 import ARCHITECTURE as COHERE2

ARCHITECTURE = replace(COHERE2, model_type="cohere2_moe", mlp_output=None)
