"""Our own Pegasus with shared heads (modeling/modeling_pegasus_gqa.py): fewer rows of the decoder's k and v."""

from dataclasses import replace

from convert_attn.convert.archs.pegasus import ARCHITECTURE as PEGASUS

ARCHITECTURE = replace(PEGASUS, model_type="pegasus_gqa", config_kv_heads="num_key_value_heads")
