"""Sources and targets to train on, as windows in the same files as plain text: see `pair_windows` and `tokens`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.heal.data.texts import Texts
from convert_attn.convert.heal.data.tokens import REMEDY, SAMPLE, plain_ids, spread, write_shape, writes_tokens
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.pair_windows import halves, paired, tokenised
from convert_attn.convert.text.pairs import holds_pairs, read_pairs
from convert_attn.convert.text.sounds import EXPECTED
from convert_attn.convert.text.windows import TOKEN_FILE, load_tokenizer

_LOOKED_AT = 1000  # pairs, whose longest side is that of the windows where the user does not say
_ROWS = 1024  # windows that are written at once
_HALVED = 256  # tokens of a side, of plain text that is halved


@dataclass(frozen=True)
class PairTexts:
    """Texts for an encoder-decoder.

    Attributes:
        folder: the checkpoint's, for its tokenizer.
        name: what the user called it.
    """

    texts: Texts
    folder: Path
    name: str
    decoder: Decoder

    def check(self) -> None:
        """Refuse texts that no side can be told of.

        Raises:
            UsageError: windows of tokens, or plain text where pairs are needed.
        """
        for spec in self._given:
            if spec.endswith(TOKEN_FILE):
                raise UsageError(
                    f"--data {spec}: '{self.name}' is an encoder-decoder, whose source and target are made of text; "
                    "give a .jsonl file of pairs, or text"
                )
        if self.decoder.sounds is not None and self.halved:
            raise UsageError(f"--data {self.halved[0]}: '{self.name}' reads sounds; give {EXPECTED}")
        if self.texts.exclude is not None and not self.of_pairs.issuperset(self._given):
            raise UsageError(f"--exclude {self.texts.exclude}: for an encoder-decoder it and --data must be of pairs")

    @property
    def halved(self) -> tuple[str, ...]:
        """Those that are plain text, whose windows are halved."""
        return tuple(spec for spec in self.texts.data if spec not in self.of_pairs)

    @property
    def _given(self) -> tuple[str, ...]:
        """All texts, the excluded one last."""
        return (*self.texts.data, *(() if self.texts.exclude is None else (self.texts.exclude,)))

    @cached_property
    def of_pairs(self) -> frozenset[str]:
        """Those that are pairs, the excluded one among them: looked at once, as a text may be far away."""
        return frozenset(spec for spec in self._given if spec != SAMPLE and holds_pairs(spec))

    def length(self, longest: int) -> int:
        """Give tokens of a side, or of a target of a sound: the longest of the first pairs, at most `longest`."""
        lengths = [2]
        tokenizer = load_tokenizer(self.folder, self.name, REMEDY)
        for spec in self.texts.data:
            if spec in self.of_pairs:
                first = islice(tokenised(read_pairs(spec), tokenizer, longest, self.decoder, spec), _LOOKED_AT)
                cut = slice(None) if self.decoder.sounds is None else slice(1, None)
                lengths += [len(side) for sides in first for side in sides[cut]]
            else:
                lengths.append(_HALVED)
        return min(longest, max(lengths))

    def pack(self, length: int, tokens: int, place: Path) -> int:
        """Write the windows [n, S + 1 + length] of every text: see `tokens.pack`; pairs go by their own tokens.

        S is `length` too, or what a sound takes.

        Returns:
            how many pairs were left out, as their source or their target is in the text that is excluded.

        Raises:
            ConvertAttnError: no tokenizer, or less text than two windows.
        """
        known = (
            set[str]()
            if self.texts.exclude is None
            else {side for pair in read_pairs(self.texts.exclude) for side in pair}
        )
        tokenizer, left_out = load_tokenizer(self.folder, self.name, REMEDY), 0
        for number, (spec, weight) in enumerate(zip(self.texts.data, self.texts.data_weights, strict=True)):
            wanted, dropped = spread(tokens * weight // sum(self.texts.data_weights)), 0

            def fresh(pair: tuple[str, str]) -> bool:
                nonlocal dropped
                shared = not known.isdisjoint(pair)
                dropped += shared
                return not shared

            make = self._pairs if spec in self.of_pairs else self._halves
            count = _write(make(spec, tokenizer, length, fresh), wanted, place, number)
            if count < 2:
                without = f" besides {dropped} that --exclude has too" if dropped else ""
                raise ConvertAttnError(
                    f"text '{spec}' gives {count} pairs{without}, expected at least 2, one to train on and one to "
                    "choose on: give more"
                )
            write_shape(place, number, count, self._source_length(length) + 1 + length)
            left_out += dropped
        return left_out

    def _pairs(
        self, spec: str, tokenizer: Any, length: int, fresh: Callable[[tuple[str, str]], bool]
    ) -> Iterator[Tensor]:
        sides = tokenised(filter(fresh, read_pairs(spec)), tokenizer, length, self.decoder, spec)
        while rows := [*islice(sides, _ROWS)]:
            yield paired(rows, (self._source_length(length), length))

    def _source_length(self, length: int) -> int:
        return length if self.decoder.sounds is None else self.decoder.sounds.states

    def _halves(
        self, spec: str, tokenizer: Any, length: int, fresh: Callable[[tuple[str, str]], bool]
    ) -> Iterator[Tensor]:
        stream = plain_ids(spec, tokenizer)
        while len(ids := [*islice(stream, _ROWS * length)]) >= 2 * length:
            yield halves(ids, tokenizer, 2 * length, self.decoder.start)


def _write(parts: Iterator[Tensor], wanted: int, place: Path, number: int) -> int:
    """How many windows were written, of so many tokens or a few more."""
    count = written = 0
    with writes_tokens(place, number) as file:
        for rows in parts:
            each = (rows >= 0).sum(1).cumsum(0)
            rows = rows[: int((each < wanted - written).sum()) + 1]
            file.write(rows.to(torch.int32).numpy().astype(np.int32).tobytes())
            count, written = count + len(rows), written + int((rows >= 0).sum())
            if written >= wanted:
                break
    return count
