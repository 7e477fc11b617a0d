"""RoBERTa with G K/V heads."""

from convert_attn.convert.targets.encoder import encoder_target

TARGET = encoder_target("roberta", "roberta_gqa", "Roberta")
