"""Cohere 2: Cohere with rotary position in the layers that have a window, and none in the others."""

from dataclasses import replace

from convert_attn.convert.archs.cohere import ARCHITECTURE as COHERE

ARCHITECTURE = replace(COHERE, model_type="cohere2", q_norm="", k_norm="")
