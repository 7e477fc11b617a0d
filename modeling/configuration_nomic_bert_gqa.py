"""Configuration of Nomic BERT whose query heads share key and value heads in groups."""

from typing import Any

from transformers import NomicBertConfig

from .encoder_heads import settle_heads  # noqa: TID251 - beside this file in a checkpoint, too


class NomicBertGQAConfig(NomicBertConfig):
    """NomicBertConfig plus the numbers that grouped heads need.

    num_key_value_heads: how many key/value heads there are; the default, as many as query heads, is plain Nomic BERT.
    num_key_value_heads_per_layer: one for each layer, where layers differ; num_key_value_heads is then the largest.
    """

    model_type = "nomic_bert_gqa"

    num_key_value_heads: int | None = None
    num_key_value_heads_per_layer: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # First, because aliases of the sizes arrive in kwargs and are set in there.
        super().__post_init__(**kwargs)
        settle_heads(self)


__all__ = ["NomicBertGQAConfig"]
