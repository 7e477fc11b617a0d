"""Falcon: q, k and v fused group by group, with as many groups as heads, with one, or with some; rotary or ALiBi.

The class of transformers caches every query head's keys and values wherever there is more than one K/V head.
"""

from convert_attn.convert.archs.base import Architecture, Norm, Variant
from convert_attn.convert.archs.packings import FusedGroups

ARCHITECTURE = Architecture(
    model_type="falcon",
    base="transformer.",
    block="h.{layer}.",
    qkv=FusedGroups("self_attention.query_key_value"),
    output="self_attention.dense",
    norm=Norm("input_layernorm"),
    position="rope",
    mlp_output="mlp.dense_4h_to_h",
    variants=(
        Variant({"alibi": (True,)}, {"position": "alibi", "coarse_slopes": True}),
        Variant({"new_decoder_architecture": (True,), "num_ln_in_parallel_attn": (None, 2)}, {"norm": Norm("ln_attn")}),
    ),
    judged="sdpa",  # eager attention adds ALiBi twice
    config_kv_heads=None,
    buffers=("self_attention.rotary_emb.inv_freq", "self_attention.maybe_rotary.inv_freq"),
)
