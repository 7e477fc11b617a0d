"""Our own Marian with shared heads (modeling/modeling_marian_gqa.py): fewer rows of the decoder's k and v."""

from dataclasses import replace

from convert_attn.convert.archs.marian import ARCHITECTURE as MARIAN

ARCHITECTURE = replace(MARIAN, model_type="marian_gqa", config_kv_heads="num_key_value_heads")
