"""Configuration of GPTBigCode with multi-head latent attention."""

from transformers import GPTBigCodeConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class GPTBigCodeMLAConfig(LatentAttentionFields, GPTBigCodeConfig):
    """GPTBigCodeConfig plus the sizes of the latent attention."""

    model_type = "gpt_bigcode_mla"


__all__ = ["GPTBigCodeMLAConfig"]
