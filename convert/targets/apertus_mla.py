"""Apertus with a latent cache: our modeling/modeling_apertus_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("apertus", "Apertus", computes=("windows by layer", "norm"))
