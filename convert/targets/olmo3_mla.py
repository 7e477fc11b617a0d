"""OLMo 3 with a latent cache: our modeling/modeling_olmo3_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("olmo3", "Olmo3", computes=("windows by layer", "norm"))
