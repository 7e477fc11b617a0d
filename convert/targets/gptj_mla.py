"""GPT-J with a latent cache: our modeling/modeling_gptj_mla.py."""

from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("gptj", "GPTJ", ("Model", "ForCausalLM", "ForSequenceClassification"))
