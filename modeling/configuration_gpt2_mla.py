"""Configuration of GPT-2 with multi-head latent attention."""

from transformers import GPT2Config

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class GPT2MLAConfig(LatentAttentionFields, GPT2Config):
    """GPT2Config plus the sizes of the latent attention.

    `scale_attn_weights` and `scale_attn_by_inverse_layer_idx` are not read: a conversion puts them into
    `softmax_scale` and the query weights. Neither is `reorder_and_upcast_attn`: the softmax is always in fp32.
    """

    model_type = "gpt2_mla"


__all__ = ["GPT2MLAConfig"]
