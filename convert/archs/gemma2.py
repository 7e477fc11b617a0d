"""Gemma 2: Gemma with capped scores, a scale of its own, every other layer windowed, and norms behind as well."""

from dataclasses import replace

from convert_attn.convert.archs.gemma import ARCHITECTURE as GEMMA

# 5.16 takes sdpa for it by default, and forgets the cap
ARCHITECTURE = replace(GEMMA, model_type="gemma2", after="post_attention_layernorm", mlp_output=None, since="5.24.0")
