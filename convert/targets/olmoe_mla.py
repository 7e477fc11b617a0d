"""OLMoE with a latent cache: our modeling/modeling_olmoe_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("olmoe", "Olmoe", computes=("windows by layer", "norm"))
