"""Seed-OSS: Llama with biases on queries, keys and values."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="seed_oss")
