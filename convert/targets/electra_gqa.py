"""ELECTRA with G K/V heads."""

from convert_attn.convert.targets.encoder import encoder_target

TARGET = encoder_target("electra", "electra_gqa", "Electra")
