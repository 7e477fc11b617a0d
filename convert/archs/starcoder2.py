"""StarCoder2: rotary position, LayerNorm, biases everywhere, an MLP without a gate, and often a window."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="starcoder2", mlp_output="mlp.c_proj")
