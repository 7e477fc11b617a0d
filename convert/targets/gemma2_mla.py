"""Gemma 2 with a latent cache: our modeling/modeling_gemma2_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("gemma2", "Gemma2", computes=("windows by layer", "soft cap"))
