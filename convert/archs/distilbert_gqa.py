"""Our own DistilBERT with grouped heads (modeling/modeling_distilbert_gqa.py): DistilBERT's names, fewer K/V rows."""

from dataclasses import replace

from convert_attn.convert.archs.distilbert import ARCHITECTURE as DISTILBERT

ARCHITECTURE = replace(DISTILBERT, model_type="distilbert_gqa", config_kv_heads="num_key_value_heads")
