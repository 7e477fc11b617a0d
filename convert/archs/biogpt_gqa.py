"""Our own BioGPT with shared heads (modeling/modeling_biogpt_gqa.py): its names, fewer rows of k and v."""

from dataclasses import replace

from convert_attn.convert.archs.biogpt import ARCHITECTURE as BIOGPT

ARCHITECTURE = replace(BIOGPT, model_type="biogpt_gqa", config_kv_heads="num_key_value_heads")
