"""Gemma 2: Gemma with capped scores, a scale of its own, every other layer windowed, and norms behind as well."""

from dataclasses import replace

from convert_attn.convert.archs.gemma import ARCHITECTURE as GEMMA

ARCHITECTURE = replace(GEMMA, model_type="gemma2", after="post_attention_layernorm", mlp_output=None)
