"""Qwen2 with experts and a latent cache: our modeling/modeling_qwen2_moe_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("qwen2_moe", "Qwen2Moe")
