"""Text as an encoder-decoder meets it: a source, and a target that follows it.

Plain text has no pairs. The first half of a window is taken as the source and the second as the target, which is what a
text and its continuation are to each other, and not what a text and its translation or summary are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.text.encoder_windows import special_tokens


def halves(ids: list[int], tokenizer: Any, window: int, start: int) -> Tensor:
    """Cut ids into windows [N, T], T even: a source between its special tokens, then `start` and the target.

    Args:
        ids: without special tokens.
        window: T at most; less where there is less text.
        start: the token that a target begins with.
    """
    before, after = special_tokens(tokenizer)
    ends = len(before) + len(after)
    half = max(ends + 1, min(window, len(ids) + ends + 1) // 2)
    source, target = half - ends, half - 1
    count = len(ids) // (source + target)
    parts = torch.tensor(ids[: count * (source + target)], dtype=torch.long).reshape(count, source + target)
    first, last, begin = (torch.tensor(part, dtype=torch.long).expand(count, -1) for part in (before, after, [start]))
    return torch.cat([first, parts[:, :source], last, begin, parts[:, source:]], 1)


def both_sides(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Give the sources [N, T / 2] and the targets [N, T / 2] of windows [N, T]."""
    source, target = windows.chunk(2, 1)
    return source, target
