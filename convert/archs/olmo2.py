"""OLMo 2: Llama with norms behind attention and MLP instead of in front, and on queries and keys over all heads."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="olmo2",
    norm=None,
    after="post_attention_layernorm",
    mlp_output=None,
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
)
