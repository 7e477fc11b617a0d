"""EXAONE 4: norms behind attention and MLP, on queries and keys, and no position in layers without a window."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="exaone4",
    norm=None,
    after="post_attention_layernorm",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    mlp_output=None,
)
