"""Nomic BERT with G K/V heads."""

from convert_attn.convert.targets.encoder import encoder_target

TARGET = encoder_target("nomic_bert", "nomic_bert_gqa", "NomicBert")
