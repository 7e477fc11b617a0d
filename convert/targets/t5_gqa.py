"""T5 with G K/V heads in its decoder: our modeling/modeling_t5_gqa.py, as no stock class is that."""

from convert_attn.convert.targets.seq2seq import seq2seq_target

TARGET = seq2seq_target("t5", "T5")
