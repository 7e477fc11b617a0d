"""Configuration of MPT with multi-head latent attention."""

from transformers import MptConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class MptMLAConfig(LatentAttentionFields, MptConfig):
    """MptConfig plus the sizes of the latent attention, and its slopes."""

    model_type = "mpt_mla"


__all__ = ["MptMLAConfig"]
