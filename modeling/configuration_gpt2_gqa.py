"""Configuration of GPT-2 whose query heads share key and value heads in groups."""

from typing import Any

from transformers import GPT2Config


class GPT2GQAConfig(GPT2Config):
    """GPT2Config plus the numbers that grouped heads need.

    num_key_value_heads: how many key/value heads there are; the default, `n_head`, is plain GPT-2 and 1 is
        multi-query attention. Query head i reads key/value head `i // (n_head // num_key_value_heads)`.
    num_key_value_heads_per_layer: one for each layer, where layers differ; num_key_value_heads is then the largest.
    head_dim: `n_embd // n_head`. Written out because static caches and serving engines read it from the
        config; no other value is valid.
    """

    model_type = "gpt2_gqa"

    num_key_value_heads: int | None = None
    num_key_value_heads_per_layer: list[int] | None = None
    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # First, because aliases such as `num_attention_heads=` arrive in kwargs and set `n_head` in there.
        super().__post_init__(**kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = max(self.num_key_value_heads_per_layer or [self.n_head])
        if self.head_dim is None:
            self.head_dim = self.n_embd // self.n_head
        self._check_heads(self.num_key_value_heads, self.head_dim)
        if self.num_key_value_heads_per_layer is not None:
            self._check_layers(self.num_key_value_heads_per_layer)

    def key_value_heads(self, layer: int) -> int:
        """How many key/value heads a layer has."""
        by_layer = self.num_key_value_heads_per_layer
        number = self.num_key_value_heads if by_layer is None else by_layer[layer]
        if number is None:
            raise ValueError("num_key_value_heads must be set in the config")
        return number

    def _check_heads(self, kv_heads: int, head_dim: int) -> None:
        if head_dim * self.n_head != self.n_embd:
            raise ValueError(
                f"head_dim * n_head must be n_embd, got {head_dim} * {self.n_head} != {self.n_embd}: "
                "leave head_dim out, and choose an n_head that divides n_embd"
            )
        if kv_heads < 1 or self.n_head % kv_heads != 0:
            raise ValueError(
                f"num_key_value_heads must divide n_head, got num_key_value_heads={kv_heads} and "
                f"n_head={self.n_head}: choose a divisor of {self.n_head}"
            )

    def _check_layers(self, by_layer: list[int]) -> None:
        largest = self.num_key_value_heads
        if len(by_layer) != self.n_layer or max(by_layer) != largest or any(n < 1 or self.n_head % n for n in by_layer):
            raise ValueError(
                f"num_key_value_heads_per_layer must hold {self.n_layer} divisors of n_head={self.n_head}, the largest "
                f"num_key_value_heads={largest}, got {by_layer}"
            )


__all__ = ["GPT2GQAConfig"]
