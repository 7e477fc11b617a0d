"""Qwen3 with a gate over its layers: our modeling/modeling_qwen3_mixture.py."""

from convert_attn.convert.targets.layer_mixture import layer_mixture

TARGET = layer_mixture("qwen3", "Qwen3")
