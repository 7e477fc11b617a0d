"""Configuration of GPT-J with multi-head latent attention."""

from transformers import GPTJConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class GPTJMLAConfig(LatentAttentionFields, GPTJConfig):
    """GPTJConfig plus the sizes of the latent attention."""

    model_type = "gptj_mla"


__all__ = ["GPTJMLAConfig"]
