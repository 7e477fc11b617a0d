"""DistilBERT: BERT's blocks under other names, with the output projection inside the attention."""

from dataclasses import replace

from convert_attn.convert.archs.bert import ARCHITECTURE as BERT
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = replace(
    BERT,
    model_type="distilbert",
    base="distilbert.",
    block="transformer.layer.{layer}.",
    qkv=Separate("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    output="attention.out_lin",
    attention="",
)
