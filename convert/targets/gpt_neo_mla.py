"""GPT-Neo with a latent cache: our modeling/modeling_gpt_neo_mla.py."""

from convert_attn.convert.targets.shared_heads import KINDS
from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("gpt_neo", "GPTNeo", [kind for kind in KINDS if kind != "ForQuestionAnswering"])
