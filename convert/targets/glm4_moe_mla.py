"""GLM-4.5 with a latent cache: our modeling/modeling_glm4_moe_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("glm4_moe", "Glm4Moe", computes=("windows by layer", "norm"))
