"""Configuration of GPT-NeoX (Pythia) with multi-head latent attention."""

from transformers import GPTNeoXConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class GPTNeoXMLAConfig(LatentAttentionFields, GPTNeoXConfig):
    """GPTNeoXConfig plus the sizes of the latent attention."""

    model_type = "gpt_neox_mla"


__all__ = ["GPTNeoXMLAConfig"]
