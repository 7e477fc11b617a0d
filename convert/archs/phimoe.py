"""Phi-3.5-MoE: LayerNorm, biases where `attention_bias` says so, and an MLP of experts."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="phimoe", mlp_output=None)
