"""ELECTRA: the blocks of BERT."""

from dataclasses import replace

from convert_attn.convert.archs.bert import ARCHITECTURE as BERT

ARCHITECTURE = replace(
    BERT,
    model_type="electra",
    base="electra.",
    unread=("embeddings.position_ids", "discriminator_predictions.", "generator_"),
)
