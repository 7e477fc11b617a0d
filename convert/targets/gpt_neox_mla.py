"""GPT-NeoX (Pythia) with a latent cache: our modeling/modeling_gpt_neox_mla.py."""

from convert_attn.convert.targets.shared_heads import KINDS
from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("gpt_neox", "GPTNeoX", KINDS)
