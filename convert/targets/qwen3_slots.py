"""Qwen3 with a cache of fixed length: our modeling/modeling_qwen3_slots.py."""

from convert_attn.convert.targets.latent_sequence import latent_sequence

TARGET = latent_sequence("qwen3", "Qwen3")
