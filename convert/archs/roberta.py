"""RoBERTa: the blocks of BERT; positions count from behind the padding token's number, so that two have no token."""

from dataclasses import replace

from convert_attn.convert.archs.bert import ARCHITECTURE as BERT

ARCHITECTURE = replace(
    BERT,
    model_type="roberta",
    base="roberta.",
    first_position=2,
    unread=("embeddings.position_ids", "pooler.", "lm_head."),
)
