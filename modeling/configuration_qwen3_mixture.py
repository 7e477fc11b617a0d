"""Configuration of Qwen3 with a gate over its layers."""

from transformers import Qwen3Config


class Qwen3MixtureConfig(Qwen3Config):
    """Qwen3Config: the gate has no settings of its own."""

    model_type = "qwen3_mixture"


__all__ = ["Qwen3MixtureConfig"]
