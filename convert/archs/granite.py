"""Granite: Llama whose scores, and what its blocks add to the residual stream, have factors of their own."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="granite", scaled_residual=True, mlp_output=None)
