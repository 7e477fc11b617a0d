"""Text as an encoder-decoder meets it: a source, and a target that follows it.

A window is a source of S tokens, a mark, and a target of T, which begins with what the decoder reads first: [S + 1 + T]
numbers. Sides that are shorter than others are filled up at their ends with what is no token.

Plain text has no pairs. The first half of a window is taken as the source and the second as the target, which is what a
text and its continuation are to each other, and not what a text and its translation or summary are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.encoder_windows import special_tokens
from convert_attn.convert.text.pairs import Pair

NOTHING, MARK = -1, -2
"""What fills up a side of a window, and what stands between both."""

HALVED = (
    "the first half of each window was the source and the second the target, which is not what a translator or a "
    "summariser reads"
)
"""What to say of plain text whose windows were cut in halves."""


def halves(ids: list[int], tokenizer: Any, window: int, start: int) -> Tensor:
    """Cut ids into windows [N, T + 1 + T]: a source between its special tokens, then `start` and the target.

    Args:
        ids: without special tokens.
        window: 2 T at most; less where there is less text.
        start: the token that a target begins with.
    """
    before, after = special_tokens(tokenizer)
    ends = len(before) + len(after)
    half = max(ends + 1, min(window, len(ids) + ends + 1) // 2)
    source, target = half - ends, half - 1
    count = len(ids) // (source + target)
    parts = torch.tensor(ids[: count * (source + target)], dtype=torch.long).reshape(count, source + target)
    first, last, begin = (
        torch.tensor(part, dtype=torch.long).expand(count, -1) for part in (before, after, [MARK, start])
    )
    return torch.cat([first, parts[:, :source], last, begin, parts[:, source:]], 1)


def tokenised(
    pairs: Iterable[Pair], tokenizer: Any, longest: int, decoder: Decoder, spec: str
) -> Iterator[tuple[list[int], ...]]:
    """Give the tokens of pairs as their model meets them: of the source, and of the target behind its first token.

    Args:
        longest: tokens of a side, at least 2; what is longer is cut off before its special tokens. A sound is not cut.
        spec: the text that the pairs are of.

    Raises:
        ConvertAttnError: a source is to be a sound and cannot be read as one.
    """
    heard, begins = decoder.reading(spec), _beginnings(tokenizer)
    for source, target in pairs:
        if heard is not None:
            read = heard(source)
        else:
            read = list(tokenizer(source, truncation=True, max_length=longest, verbose=False)["input_ids"])
        learned = _learned(target, tokenizer, longest - 1, begins)
        if read and learned:
            first = decoder.shift(learned)
            yield read, learned if learned[0] == first and first in begins else [first, *learned]


def _beginnings(tokenizer: Any) -> frozenset[int]:
    """Special tokens that a target may begin with by itself, as one that names its language does.

    None where the tokenizer puts nothing in front of a text.
    """
    if not special_tokens(tokenizer)[0]:
        return frozenset()
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)


def _learned(target: str, tokenizer: Any, longest: int, begins: frozenset[int]) -> list[int]:
    """A target's tokens: one that begins with special tokens has them in place of the tokenizer's own."""
    cut: dict[str, Any] = {"truncation": True, "verbose": False}
    if begins:
        end = special_tokens(tokenizer)[1]
        own = tokenizer(text_target=target, add_special_tokens=False, max_length=longest - len(end), **cut)["input_ids"]
        if own and own[0] in begins:
            return [*own, *end]
    return list(tokenizer(text_target=target, max_length=longest, **cut)["input_ids"])


def paired(sides: Iterable[tuple[list[int], ...]], sizes: tuple[int, int] | None = None) -> Tensor:
    """Give windows [N, S + 1 + T] of sources and targets.

    Args:
        sizes: S and T, at least those of the longest; None: those.
    """
    found = list(sides)
    sizes = sizes or (max(len(source) for source, _ in found), max(len(target) for _, target in found))
    rows = [
        [
            *source,
            *[NOTHING] * (sizes[0] - len(source)),
            MARK,
            *target,
            *[NOTHING] * (sizes[1] - len(target)),
        ]
        for source, target in found
    ]
    return torch.tensor(rows, dtype=torch.long)


def both_sides(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Give the sources [N, S] and the targets [N, T] of windows [N, S + 1 + T]."""
    place = int((windows[0] == MARK).nonzero()[0])
    return windows[:, :place], windows[:, place + 1 :]


def has_sides(windows: Tensor) -> bool:
    """Tell whether windows are of sources and targets."""
    return bool((windows[:1] == MARK).any())


def is_filled(windows: Tensor) -> bool:
    """Tell whether some side of windows is filled up: these are pairs, each of its own length."""
    return bool((windows == NOTHING).any())


def trimmed(windows: Tensor) -> Tensor:
    """Windows of pairs without what none of them fills."""
    if not is_filled(windows):
        return windows
    source, target = (side[:, : int((side >= 0).sum(1).max())] for side in both_sides(windows))
    return torch.cat([source, torch.full_like(windows[:, :1], MARK), target], 1)


def count_tokens(windows: Tensor) -> int:
    """Count the tokens of windows."""
    return int((windows >= 0).sum())


def asked(targets: Tensor) -> Tensor:
    """Tell which tokens of targets [N, T] have a next one, and none behind the end: [N, T]."""
    last = torch.zeros_like(targets[:, :1], dtype=torch.bool)
    return torch.cat([targets[:, 1:] >= 0, last], 1)


def readable(side: Tensor) -> Tensor:
    """Token ids [N, T] with any token in the place of what is none."""
    return side.clamp_min(0)
