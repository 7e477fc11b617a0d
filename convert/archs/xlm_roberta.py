"""XLM-RoBERTa: RoBERTa on another vocabulary."""

from dataclasses import replace

from convert_attn.convert.archs.roberta import ARCHITECTURE as ROBERTA

ARCHITECTURE = replace(ROBERTA, model_type="xlm-roberta")
