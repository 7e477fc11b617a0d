"""BioGPT: learned positions, separate projections with biases."""

from dataclasses import replace

from convert_attn.convert.archs.xglm import ARCHITECTURE as XGLM

ARCHITECTURE = replace(XGLM, model_type="biogpt", base="biogpt.", unread=())
