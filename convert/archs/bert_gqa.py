"""Our own BERT with grouped heads (modeling/modeling_bert_gqa.py): BERT's names, fewer K/V rows."""

from dataclasses import replace

from convert_attn.convert.archs.bert import ARCHITECTURE as BERT

ARCHITECTURE = replace(BERT, model_type="bert_gqa", config_kv_heads="num_key_value_heads")
