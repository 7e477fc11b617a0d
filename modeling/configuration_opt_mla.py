"""Configuration of OPT with multi-head latent attention."""

from transformers import OPTConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class OPTMLAConfig(LatentAttentionFields, OPTConfig):
    """OPTConfig plus the sizes of the latent attention, which also say its biases: `enable_bias` is the MLP's."""

    model_type = "opt_mla"


__all__ = ["OPTMLAConfig"]
