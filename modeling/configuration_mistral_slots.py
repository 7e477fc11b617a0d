"""Configuration of Mistral with a cache of fixed length."""

from transformers import MistralConfig

from .configuration_latent_sequence import LatentSequenceFields  # noqa: TID251 - beside this file in a checkpoint


class MistralSlotsConfig(LatentSequenceFields, MistralConfig):
    """MistralConfig plus the sizes of the cache."""

    model_type = "mistral_slots"


__all__ = ["MistralSlotsConfig"]
