"""BERT: an encoder with LayerNorms behind attention and MLP, learned positions, biases everywhere."""

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="bert",
    base="bert.",
    block="encoder.layer.{layer}.",
    qkv=Separate("attention.self.query", "attention.self.key", "attention.self.value"),
    output="attention.output.dense",
    norm=None,
    position="learned",
    mlp_output=None,
    attention="attention.self",
    causal=False,
    config_kv_heads=None,
    unread=("embeddings.position_ids", "pooler.", "cls.seq_relationship."),
)
