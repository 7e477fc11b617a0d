"""Phi with a latent cache: our modeling/modeling_phi_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("phi", "Phi")
