"""Configuration of Nemotron with multi-head latent attention."""

from transformers import NemotronConfig

from .configuration_latent_attention import LatentAttentionFields  # noqa: TID251 - beside this file in a checkpoint


class NemotronMLAConfig(LatentAttentionFields, NemotronConfig):
    """NemotronConfig plus the sizes of the latent attention."""

    model_type = "nemotron_mla"


__all__ = ["NemotronMLAConfig"]
