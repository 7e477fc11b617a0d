"""Configuration of Mistral with a gate over its layers."""

from transformers import MistralConfig


class MistralMixtureConfig(MistralConfig):
    """MistralConfig: the gate has no settings of its own."""

    model_type = "mistral_mixture"


__all__ = ["MistralMixtureConfig"]
