"""OLMo 2 with a latent cache: our modeling/modeling_olmo2_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("olmo2", "Olmo2", computes=("windows by layer", "norm"))
