"""Our own RoBERTa with grouped heads (modeling/modeling_roberta_gqa.py): RoBERTa's names, fewer K/V rows."""

from dataclasses import replace

from convert_attn.convert.archs.roberta import ARCHITECTURE as ROBERTA

ARCHITECTURE = replace(ROBERTA, model_type="roberta_gqa", config_kv_heads="num_key_value_heads")
