"""Flint: Qwen3 with sinks, experts, and rotary position in the layers that have a window, none in the others."""

from dataclasses import replace

from convert_attn.convert.archs.qwen3 import ARCHITECTURE as QWEN3

ARCHITECTURE = replace(QWEN3, model_type="flint", sinks="self_attn.sinks", mlp_output=None)
