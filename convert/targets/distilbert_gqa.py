"""DistilBERT with G K/V heads."""

from convert_attn.convert.targets.encoder import encoder_target

TARGET = encoder_target("distilbert", "distilbert_gqa", "DistilBert")
