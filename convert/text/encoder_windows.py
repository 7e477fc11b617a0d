"""Text as an encoder meets it: windows that begin and end with its tokenizer's special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

WINDOW = 64  # tokens of a text with the special ones; encoders of sentences read such lengths
_WORD = "a"


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """List what a tokenizer puts in front of a text and behind it; nothing where it adds something in between."""
    plain, whole = (list(tokenizer(_WORD, add_special_tokens=add)["input_ids"]) for add in (False, True))
    for begin in range(len(whole) - len(plain) + 1):
        if plain and whole[begin : begin + len(plain)] == plain:
            return whole[:begin], whole[begin + len(plain) :]
    return [], []


def plain_tokens(documents: Iterable[str], tokenizer: Any, wanted: int) -> list[int]:
    """Documents one after the other, without special tokens, until there are enough."""
    ids: list[int] = []
    for document in documents:
        ids += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= wanted:
            break
    return ids[:wanted]


def framed(ids: list[int], tokenizer: Any, window: int) -> Tensor:
    """Cut ids into windows [N, T] of as many tokens, special ones at both ends counted.

    Args:
        window: T at most; less where there is less text.
    """
    before, after = special_tokens(tokenizer)
    inside = max(1, min(window - len(before) - len(after), len(ids)))
    parts = torch.tensor(ids[: len(ids) // inside * inside]).reshape(-1, inside)
    ends = (torch.tensor(part, dtype=torch.long).expand(len(parts), -1) for part in (before, after))
    first, last = ends
    return torch.cat([first, parts, last], 1)
