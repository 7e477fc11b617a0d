"""ERNIE 4.5 MoE: ERNIE 4.5 with experts in all layers but the first ones."""

from dataclasses import replace

from convert_attn.convert.archs.ernie4_5 import ARCHITECTURE as ERNIE4_5

ARCHITECTURE = replace(ERNIE4_5, model_type="ernie4_5_moe", mlp_output=None)
