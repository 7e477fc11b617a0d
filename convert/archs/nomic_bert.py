"""Nomic BERT: an encoder with rotary positions, and LayerNorms behind attention and MLP; no biases."""

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = Architecture(
    model_type="nomic_bert",
    base="nomic_bert.",
    block="layers.{layer}.",
    qkv=Separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    norm=None,
    position="rope",
    mlp_output=None,
    causal=False,
    config_kv_heads=None,
    unread=("embeddings.position_ids", "embeddings.token_type_ids", "pooler."),
)
