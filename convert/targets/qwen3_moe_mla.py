"""Qwen3 with experts and a latent cache: our modeling/modeling_qwen3_moe_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("qwen3_moe", "Qwen3Moe", computes=("windows by layer", "norm"))
