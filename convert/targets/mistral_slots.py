"""Mistral with a cache of fixed length: our modeling/modeling_mistral_slots.py."""

from convert_attn.convert.targets.latent_sequence import latent_sequence

TARGET = latent_sequence("mistral", "Mistral")
