"""A language model some of whose layers look at images, called with random states in the place of an image's.

Letters in shapes: B sequences, S tokens, M states of images, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

OTHERS, _SEED = 11, 4243  # states of images that are looked at, and what they are drawn by


class Seeing:
    """A model that is called as any other, and given states of images besides: the same for every sequence.

    Args:
        model: the language model, or a larger one around it.
        states: what it calls the states.
        mask: what it calls what is added to scores of them, [B, 1, S, M]; "" where it is not to be given.
        given: [1, M, D] the states; None: random ones.
        count: of random ones, M; None: as many as tokens are read at first.
    """

    def __init__(
        self, model: Any, states: str, mask: str = "", *, given: Tensor | None = None, count: int | None = OTHERS
    ) -> None:
        self._model, self._names, self._given, self._count = model, (states, mask), given, count
        self._looked_at = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *, input_ids: Tensor, **others: Any) -> Any:
        """Run it; the states are handed over once, and are in the cache from then on."""
        (states, mask), own = self._names, next(self._model.parameters())
        cached = any(isinstance(value, Cache) and value.get_seq_length() for value in others.values())
        if not cached:
            made = self._states(input_ids.shape[1]).to(own.device, own.dtype)
            others[states], self._looked_at = made.expand(len(input_ids), -1, -1), made.shape[1]
        if mask:
            others[mask] = torch.zeros(len(input_ids), 1, input_ids.shape[1], self._looked_at).to(own.device, own.dtype)
        return self._model(input_ids=input_ids, **others)

    def _states(self, tokens: int) -> Tensor:
        """The states, [1, M, D]."""
        if self._given is not None:
            return self._given
        config, generator = self._model.config, torch.Generator().manual_seed(_SEED)
        size = getattr(config, "hidden_size", None) or config.get_text_config(decoder=True).hidden_size
        return torch.randn(1, tokens if self._count is None else self._count, size, generator=generator)
