"""Mllama's language model (Llama 3.2 Vision): Llama, with blocks in between that look at images and at nothing else."""

from dataclasses import replace

from convert_attn.convert.archs.base import ImageLayers
from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA
from convert_attn.convert.archs.packings import Separate

ARCHITECTURE = replace(
    LLAMA,
    model_type="mllama_text_model",
    seeing=ImageLayers(
        layers="cross_attention_layers",
        states="cross_attention_states",
        mask="cross_attention_mask",
        facts={
            "qkv": Separate("cross_attn.q_proj", "cross_attn.k_proj", "cross_attn.v_proj"),
            "output": "cross_attn.o_proj",
            "q_norm": "cross_attn.q_norm",
            "k_norm": "cross_attn.k_norm",
            "scaled_residual": True,
        },
    ),
    buffers=(),
)
