"""GPT-OSS: sinks in every query head, every other layer windowed, biases in attention, an MLP of experts."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="gpt_oss", sinks="self_attn.sinks", mlp_output=None)
