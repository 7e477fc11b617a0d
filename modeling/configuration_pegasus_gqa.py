"""Configuration of Pegasus whose decoder's query heads share key and value heads in groups."""

from typing import Any

from transformers import PegasusConfig

from .configuration_seq2seq_heads import settle_decoder_heads  # noqa: TID251 - beside this file in a checkpoint, too


class PegasusGQAConfig(PegasusConfig):
    """PegasusConfig plus how many key/value heads the decoder has: see `settle_decoder_heads`."""

    model_type = "pegasus_gqa"

    num_key_value_heads: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        settle_decoder_heads(self, self.decoder_attention_heads)


__all__ = ["PegasusGQAConfig"]
