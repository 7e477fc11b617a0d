"""Arcee: Llama with a squared ReLU, and no gate, in its MLP."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="arcee")
