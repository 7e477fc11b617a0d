"""BioGPT with a latent cache: our modeling/modeling_biogpt_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("biogpt", "BioGpt")
