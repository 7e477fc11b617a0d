"""Persimmon with G K/V heads: our modeling/modeling_persimmon_gqa.py, since no class of transformers is that."""

from convert_attn.convert.targets.shared_heads import LABELLED, shared_heads

TARGET = shared_heads("persimmon", "Persimmon", LABELLED[:2])
