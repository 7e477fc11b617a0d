"""EXAONE 4 with a latent cache: our modeling/modeling_exaone4_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("exaone4", "Exaone4", computes=("windows by layer", "norm"))
