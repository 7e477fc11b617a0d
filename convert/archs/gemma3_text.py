"""Gemma 3's language model: Gemma 2 with norms on queries and keys, and other frequencies in layers with a window."""

from dataclasses import replace

from convert_attn.convert.archs.gemma2 import ARCHITECTURE as GEMMA2

ARCHITECTURE = replace(
    GEMMA2, model_type="gemma3_text", since="0", q_norm="self_attn.q_norm", k_norm="self_attn.k_norm", legacy_config={}
)
