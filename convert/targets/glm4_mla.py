"""GLM-4 with a latent cache: our modeling/modeling_glm4_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("glm4", "Glm4")
