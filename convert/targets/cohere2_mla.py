"""Cohere 2 with a latent cache: our modeling/modeling_cohere2_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("cohere2", "Cohere2")
