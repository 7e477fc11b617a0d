"""Cohere with a latent cache: our modeling/modeling_cohere_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("cohere", "Cohere", computes=("windows by layer", "norm"))
