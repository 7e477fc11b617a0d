"""Kolibri 1: norms on queries, keys and what blocks add; layers with a window turn, others know of no position."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="kolibri1",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    after="post_self_attn_layernorm",
    mlp_output=None,
)
