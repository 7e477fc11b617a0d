"""EXAONE-MoE: norms on queries and keys, no position in layers without a window, and experts."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA, model_type="exaone_moe", q_norm="self_attn.q_norm", k_norm="self_attn.k_norm", mlp_output=None
)
