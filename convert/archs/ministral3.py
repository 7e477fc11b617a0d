"""Ministral 3: Mistral whose queries grow beyond the length that it was trained on."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="ministral3")
