"""Llama with a cache of fixed length: our modeling/modeling_llama_slots.py."""

from convert_attn.convert.targets.latent_sequence import latent_sequence

TARGET = latent_sequence("llama", "Llama")
