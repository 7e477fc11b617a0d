"""Configuration of GPTBigCode whose query heads share key and value heads in groups."""

from typing import Any

from transformers import GPTBigCodeConfig

from .configuration_shared_heads import check_shared_heads  # noqa: TID251 - beside this file in a checkpoint, too


class GPTBigCodeGQAConfig(GPTBigCodeConfig):
    """GPTBigCodeConfig plus the numbers that shared heads need: see `check_shared_heads`."""

    model_type = "gpt_bigcode_gqa"

    num_key_value_heads: int | None = None  # type: ignore[assignment]  # the stock class counts it
    num_key_value_heads_per_layer: list[int] | None = None
    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        given = self.num_key_value_heads
        super().__post_init__(**kwargs)
        self.num_key_value_heads = given  # the stock class knows one, or one for each query head
        check_shared_heads(self)


__all__ = ["GPTBigCodeGQAConfig"]
