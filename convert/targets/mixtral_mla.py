"""Mixtral with a latent cache: our modeling/modeling_mixtral_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("mixtral", "Mixtral")
