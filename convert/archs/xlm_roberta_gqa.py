"""Our own XLM-RoBERTa with grouped heads (modeling/modeling_xlm_roberta_gqa.py): its names, fewer K/V rows."""

from dataclasses import replace

from convert_attn.convert.archs.xlm_roberta import ARCHITECTURE as XLM_ROBERTA

ARCHITECTURE = replace(XLM_ROBERTA, model_type="xlm_roberta_gqa", config_kv_heads="num_key_value_heads")
