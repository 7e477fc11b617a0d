"""GPTBigCode with a latent cache: our modeling/modeling_gpt_bigcode_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("gpt_bigcode", "GPTBigCode")
