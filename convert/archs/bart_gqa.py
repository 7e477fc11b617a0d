"""Our own BART with shared heads (modeling/modeling_bart_gqa.py): fewer rows of the decoder's k and v."""

from dataclasses import replace

from convert_attn.convert.archs.bart import ARCHITECTURE as BART

ARCHITECTURE = replace(BART, model_type="bart_gqa", config_kv_heads="num_key_value_heads")
