"""What the config of an encoder-decoder with shared key/value heads in its decoder has besides its family's."""

from typing import Any


def settle_decoder_heads(config: Any, heads: Any) -> None:
    """Fill in and check num_key_value_heads, the key/value heads of each of the decoder's attention modules.

    The default, one for each query head, is the family's own attention and 1 is multi-query attention. Query head i
    reads key/value head i // (heads // key/value heads), of its own tokens and of the encoder's. The encoder's
    attention has a key/value head for every query head.

    heads: query heads of the decoder.

    Raises: ValueError for a number that does not divide them.
    """
    if config.num_key_value_heads is None:
        config.num_key_value_heads = heads
    number = config.num_key_value_heads
    if number < 1 or heads % number:
        raise ValueError(f"num_key_value_heads must divide the decoder's {heads} query heads, got {number}")


__all__ = ["settle_decoder_heads"]
