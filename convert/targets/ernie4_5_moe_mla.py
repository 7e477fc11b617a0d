"""ERNIE 4.5 with experts and a latent cache: our modeling/modeling_ernie4_5_moe_mla.py."""

from dataclasses import replace

from convert_attn.convert.targets.stock_latent import KINDS, stock_latent

_STOCK = stock_latent("ernie4_5_moe", "Ernie4_5_Moe")
TARGET = replace(_STOCK, classes={f"Ernie4_5_Moe{kind}": f"Ernie45MoeMLA{kind}" for kind in KINDS})
