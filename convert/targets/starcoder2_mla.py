"""StarCoder 2 with a latent cache: our modeling/modeling_starcoder2_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("starcoder2", "Starcoder2")
