"""Ministral with a latent cache: our modeling/modeling_ministral_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("ministral", "Ministral")
