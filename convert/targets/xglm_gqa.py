"""XGLM with G K/V heads: our modeling/modeling_xglm_gqa.py, since no class of transformers is that."""

from convert_attn.convert.targets.shared_heads import KINDS, shared_heads

TARGET = shared_heads("xglm", "XGLM", KINDS[:2])
