"""Configuration of Qwen2 with a gate over its layers."""

from transformers import Qwen2Config


class Qwen2MixtureConfig(Qwen2Config):
    """Qwen2Config: the gate has no settings of its own."""

    model_type = "qwen2_mixture"


__all__ = ["Qwen2MixtureConfig"]
