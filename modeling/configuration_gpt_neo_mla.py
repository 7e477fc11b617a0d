"""Configuration of GPT-Neo with multi-head latent attention."""

from transformers import GPTNeoConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class GPTNeoMLAConfig(LatentAttentionFields, GPTNeoConfig):
    """GPTNeoConfig plus the sizes of the latent attention."""

    model_type = "gpt_neo_mla"


__all__ = ["GPTNeoMLAConfig"]
