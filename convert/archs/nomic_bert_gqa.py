"""Our own Nomic BERT with grouped heads (modeling/modeling_nomic_bert_gqa.py): its names, fewer K/V rows."""

from dataclasses import replace

from convert_attn.convert.archs.nomic_bert import ARCHITECTURE as NOMIC_BERT

ARCHITECTURE = replace(NOMIC_BERT, model_type="nomic_bert_gqa", config_kv_heads="num_key_value_heads")
