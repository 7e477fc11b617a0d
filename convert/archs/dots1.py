"""dots.llm1: norms on queries and keys, windows in some layers, experts in all but the first ones."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="dots1", q_norm="self_attn.q_norm", k_norm="self_attn.k_norm", mlp_output=None)
