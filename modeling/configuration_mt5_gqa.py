"""Configuration of mT5 whose decoder's query heads share key and value heads in groups."""

from typing import Any

from transformers import MT5Config

from .configuration_seq2seq_heads import settle_decoder_heads  # noqa: TID251 - beside this file in a checkpoint, too


class MT5GQAConfig(MT5Config):
    """MT5Config plus how many key/value heads the decoder has: see `settle_decoder_heads`."""

    model_type = "mt5_gqa"

    num_key_value_heads: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        settle_decoder_heads(self, self.num_heads)


__all__ = ["MT5GQAConfig"]
