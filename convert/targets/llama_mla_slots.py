"""Llama and its relatives with a latent cache of fixed length: our modeling/modeling_llama_mla_slots.py."""

from convert_attn.convert.targets.latent_sequence import with_slots
from convert_attn.convert.targets.llama_mla import TARGET as LLAMA_MLA

TARGET = with_slots(LLAMA_MLA)
