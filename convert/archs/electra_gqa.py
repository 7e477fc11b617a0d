"""Our own ELECTRA with grouped heads (modeling/modeling_electra_gqa.py): ELECTRA's names, fewer K/V rows."""

from dataclasses import replace

from convert_attn.convert.archs.electra import ARCHITECTURE as ELECTRA

ARCHITECTURE = replace(ELECTRA, model_type="electra_gqa", config_kv_heads="num_key_value_heads")
