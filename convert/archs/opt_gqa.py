"""Our own OPT with shared heads (modeling/modeling_opt_gqa.py): its names, fewer rows of k and v."""

from dataclasses import replace

from convert_attn.convert.archs.opt import ARCHITECTURE as OPT

ARCHITECTURE = replace(OPT, model_type="opt_gqa", config_kv_heads="num_key_value_heads")
