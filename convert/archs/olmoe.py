"""OLMoE: Llama with norms on queries and keys over all heads, and an MLP of experts."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="olmoe",
    clip="clip_qkv",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    mlp_output=None,
)
