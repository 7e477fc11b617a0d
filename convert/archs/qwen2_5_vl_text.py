"""Qwen2.5-VL's language model: Qwen2, which turns by three axes of position that are one on text."""

from dataclasses import replace

from convert_attn.convert.archs.qwen2 import ARCHITECTURE as QWEN2

ARCHITECTURE = replace(QWEN2, model_type="qwen2_5_vl_text")
