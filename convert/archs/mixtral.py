"""Mixtral: Mistral with an MLP of experts, which checkpoints mostly store one by one."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="mixtral", mlp_output=None)
