"""Qwen3 with a latent cache: our modeling/modeling_qwen3_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("qwen3", "Qwen3", computes=("windows by layer", "norm"))
