"""OPT with a latent cache: our modeling/modeling_opt_mla.py."""

from convert_attn.convert.targets.shared_heads import KINDS
from convert_attn.convert.targets.stock_latent import stock_latent

TARGET = stock_latent("opt", "OPT", [kind for kind in KINDS if kind != "ForTokenClassification"])
