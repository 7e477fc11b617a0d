"""GPT-2 with a latent cache: our modeling/modeling_gpt2_mla.py."""

from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, LatentCache
from convert_attn.convert.targets.base import Target
from convert_attn.convert.targets.latent import latent_config, latent_shapes
from convert_attn.convert.targets.stock_latent import scaled_tensors

_ATTENTION = "attn."


TARGET = Target(
    name="gpt2_mla",
    layout="custom",
    sources=frozenset({"gpt2", "gpt2_gqa"}),
    becomes="gpt2_mla",
    configure=latent_config,
    classes={
        f"{family}{kind}": f"GPT2MLA{result}"
        for family in ("GPT2", "GPT2GQA")
        for kind, result in (
            ("Model", "Model"),
            ("LMHeadModel", "ForCausalLM"),
            ("ForCausalLM", "ForCausalLM"),
            ("ForSequenceClassification", "ForSequenceClassification"),
        )
    },
    shapes=lambda blueprint, layer: latent_shapes(blueprint, layer, _ATTENTION),
    tensors=scaled_tensors,
    form=LatentCache,
    by_layer=frozenset({"rank"}),
    removed=frozenset(
        {HEADS_BY_LAYER, "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"}
    ),
)
