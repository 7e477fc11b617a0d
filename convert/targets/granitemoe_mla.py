"""Granite with experts and a latent cache: our modeling/modeling_granitemoe_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("granitemoe", "GraniteMoe")
