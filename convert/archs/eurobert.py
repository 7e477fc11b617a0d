"""EuroBERT: an encoder of Llama's blocks, in which every token sees all; K/V heads are shared in its own class."""

from dataclasses import replace

from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(LLAMA, model_type="eurobert", causal=False)
