"""Mistral with a gate over its layers: our modeling/modeling_mistral_mixture.py."""

from convert_attn.convert.targets.layer_mixture import layer_mixture

TARGET = layer_mixture("mistral", "Mistral")
