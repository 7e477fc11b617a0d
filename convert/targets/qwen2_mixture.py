"""Qwen2 with a gate over its layers: our modeling/modeling_qwen2_mixture.py."""

from convert_attn.convert.targets.layer_mixture import layer_mixture

TARGET = layer_mixture("qwen2", "Qwen2")
