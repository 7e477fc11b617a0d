"""Training text as windows of tokens in a file: any window at any time, the same for every process and after a break.

The text is read once, document by document; windows for choosing and windows to train on are disjoint. Which window
comes when depends on the seed and the step alone, never on how many processes share the work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.heal.data.texts import Texts
from convert_attn.convert.samples import calibration_text
from convert_attn.convert.text.documents import read_documents
from convert_attn.convert.text.encoder_windows import special_tokens
from convert_attn.convert.text.pair_windows import MARK, both_sides, has_sides
from convert_attn.convert.text.windows import TOKEN_FILE, load_tokenizer, token_file

Ends = tuple[list[int], list[int]]
"""Tokens in front of a window's text and behind it."""

SAMPLE = "sample"
_TOKENS, _SHAPE = "tokens-{}.bin", "tokens-{}.json"
_SPREAD, _SPREAD_TOKENS = 16, 2**24  # so many times the tokens wanted are read, up to this number, and windows drawn
_ANY_LENGTH = 1 << 40
_RUN = 32  # tokens: a text is known again by runs of so many
_WEIGHTS = np.random.default_rng(0).integers(1, 2**63, _RUN, dtype=np.uint64) | np.uint64(1)
_PIECE, _GAP = 2**20, re.compile(r"(?<=\S)(?=\s\S)")  # characters
_MOST_SELECTION = 4  # at most one window in four is kept for choosing
REMEDY = "healing on a text needs one; put tokenizer.json into its folder, or give token ids as --data FILE.npy"


@dataclass(frozen=True)
class Part:
    """One of the texts that a run draws from.

    Attributes:
        windows: [n, length] of int32, in a file.
        order: [n - m] which windows to train on, in the order of their first use.
        seed: of the order of later rounds.
    """

    windows: NDArray[np.int32]
    order: Tensor
    seed: int

    def take(self, numbers: list[int]) -> NDArray[np.int32]:
        """The windows of these places in this text's own turn: [len(numbers), length]; a short text comes again."""
        turns = [divmod(number, len(self.order)) for number in numbers]
        orders = {round_: self._order(round_) for round_ in {round_ for round_, _ in turns}}
        return self.windows[[int(orders[round_][place]) for round_, place in turns]]

    def _order(self, round_: int) -> Tensor:
        """Which window comes when, the text being read for the n-th time."""
        if round_ == 0:
            return self.order
        return self.order[torch.randperm(len(self.order), generator=torch.Generator().manual_seed(self.seed + round_))]


@dataclass(frozen=True)
class Text:
    """Windows of one text, or of several in fixed shares.

    Attributes:
        parts: the texts.
        weights: of every so many windows in a row, how many are each text's.
        selection: [m, length] token ids to choose on, of all texts.
    """

    parts: tuple[Part, ...]
    weights: tuple[int, ...]
    selection: Tensor

    @property
    def length(self) -> int:
        """Numbers per window."""
        return int(self.parts[0].windows.shape[1])

    @property
    def side(self) -> int:
        """Tokens of a window that go through a model together: all, or of pairs those of a side, at most."""
        if not has_sides(self.selection):
            return self.length
        return max(side.shape[1] for side in both_sides(self.selection))

    @cached_property
    def tokens_each(self) -> int:
        """Tokens per window, of pairs on average: both sides, without what fills up."""
        if not has_sides(self.selection):
            return self.length
        means = [float((part.windows >= 0).mean()) * self.length for part in self.parts]
        shares = zip(means, self.weights, strict=True)
        return max(1, round(sum(mean * weight for mean, weight in shares) / sum(self.weights)))

    def batch(self, first: int, count: int) -> Tensor:
        """Give the windows of places first to first + count - 1 of the run: [count, length]."""
        cycle = _cycle(self.weights)
        places: list[list[int]] = [[] for _ in self.parts]
        numbers: list[list[int]] = [[] for _ in self.parts]
        for place in range(first, first + count):
            round_, turn = divmod(place, len(cycle))
            which, rank = cycle[turn]
            places[which].append(place - first)
            numbers[which].append(round_ * self.weights[which] + rank)
        taken = np.empty((count, self.length), dtype=np.int64)
        for part, where, own in zip(self.parts, places, numbers, strict=True):
            if where:
                taken[where] = part.take(own)
        return torch.from_numpy(taken)

    def rounds(self, tokens: int) -> tuple[float, ...]:
        """Tell how many times each text is read in a run over so many tokens."""
        shares = (weight / sum(self.weights) for weight in self.weights)
        return tuple(
            tokens * share / (len(part.order) * self.tokens_each)
            for part, share in zip(self.parts, shares, strict=True)
        )


@lru_cache
def _cycle(weights: tuple[int, ...]) -> list[tuple[int, int]]:
    """(text, its how-manieth in the cycle) for sum(weights) places in a row, each text spread evenly over them."""
    turns = [((rank + 0.5) / weight, part, rank) for part, weight in enumerate(weights) for rank in range(weight)]
    return [(part, rank) for _, part, rank in sorted(turns)]


def window_length(specs: Sequence[str], longest: int) -> int:
    """Give tokens per window: `longest`, or what the texts have that are windows already, if that is less."""
    lengths = [token_file(Path(spec), longest, None).shape[1] for spec in specs if spec.endswith(TOKEN_FILE)]
    return min([longest, *lengths])


def pack(texts: Texts, folder: Path, *, name: str, length: int, tokens: int, place: Path, encoder: bool = False) -> int:
    """Write the windows of every text to train on into a folder.

    Args:
        texts: each "sample" (the package's text), what `read_documents` takes, or a .npy file of windows [n, length];
            windows that have 64 or more tokens in a row in common with what they exclude are left out.
        folder: the checkpoint's, for its tokenizer.
        name: what the user called it.
        length: tokens per window.
        tokens: how many the run asks for, of which each text gives its share.
        place: where to write.
        encoder: windows begin and end with the tokenizer's special tokens; those of a .npy file are as they are.

    Returns:
        how many windows were left out.

    Raises:
        ConvertAttnError: no tokenizer, or less text than two windows.
    """
    known = np.zeros(0, dtype=np.uint64)
    if texts.exclude is not None:
        known = _runs(np.fromiter(_stream(texts.exclude, folder, name, encoder), dtype=np.int64))
    left_out = 0
    for number, (spec, weight) in enumerate(zip(texts.data, texts.data_weights, strict=True)):
        stream = _stream(spec, folder, name, encoder)
        framed = encoder and not spec.endswith(TOKEN_FILE)
        ends: Ends = special_tokens(load_tokenizer(folder, name, REMEDY)) if framed else ([], [])
        if not spec.endswith(TOKEN_FILE):
            wanted = spread(tokens * weight // sum(texts.data_weights))
            stream = islice(stream, wanted + 2 * length)
        with writes_tokens(place, number) as file:
            count, dropped = _write_windows(stream, known, length, ends, file)
        if count < 2:
            without = f" besides {dropped} that --exclude has too" if dropped else ""
            raise ConvertAttnError(
                f"text '{spec}' gives {count} windows of {length} tokens{without}, expected at least 2, one to train "
                "on and one to choose on: give more text, or a smaller --seq-len"
            )
        write_shape(place, number, count, length)
        left_out += dropped
    return left_out


def spread(own: int) -> int:
    """Tell how many tokens are read of a text that gives so many, which are drawn from all over it."""
    return max(own, min(_SPREAD * own, _SPREAD_TOKENS))


def writes_tokens(place: Path, number: int) -> BinaryIO:
    """Open the file for the windows of a text."""
    return (place / _TOKENS.format(number)).open("wb")


def write_shape(place: Path, number: int, count: int, length: int) -> None:
    """Note how many windows of what length a text has."""
    (place / _SHAPE.format(number)).write_text(json.dumps([count, length]))


def _write_windows(
    stream: Iterator[int], known: NDArray[np.uint64], length: int, ends: Ends, file: BinaryIO
) -> tuple[int, int]:
    """How many windows of a stream were written, and how many left out for what they share with known text.

    Args:
        ends: what each begins and ends with, part of its length.
    """
    count = dropped = 0
    inside = max(1, length - sum(map(len, ends)))
    while len(ids := [*islice(stream, 4096 * inside)]) >= inside:
        windows = np.array(ids[: len(ids) // inside * inside], dtype=np.int64).reshape(-1, inside)
        fresh = windows[~_shares(windows, known)]
        before, after = (np.tile(np.array(part, dtype=np.int64), (len(fresh), 1)) for part in ends)
        file.write(np.concatenate([before, fresh, after], 1).astype(np.int32).tobytes())
        count, dropped = count + len(fresh), dropped + len(windows) - len(fresh)
    return count, dropped


def _stream(spec: str, folder: Path, name: str, encoder: bool = False) -> Iterator[int]:
    """The tokens of a text; of an encoder without special ones."""
    if spec.endswith(TOKEN_FILE):
        return iter(token_file(Path(spec), _ANY_LENGTH, None).flatten().tolist())
    return _ids(_documents(spec), load_tokenizer(folder, name, REMEDY), special=not encoder)


def plain_ids(spec: str, tokenizer: Any) -> Iterator[int]:
    """Give the tokens of a text, no special ones among them."""
    return _ids(_documents(spec), tokenizer, special=False)


def _documents(spec: str) -> Iterable[str]:
    return [calibration_text()] if spec == SAMPLE else read_documents(spec)


def _runs(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for every run of 32 tokens, sorted."""
    if len(ids) < _RUN:
        return np.zeros(0, dtype=np.uint64)
    views = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), _RUN)
    return np.unique(np.concatenate([part @ _WEIGHTS for part in np.array_split(views, len(views) // 2**20 + 1)]))


def _shares(windows: NDArray[np.int64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether windows [n, length] have one of their runs of 32, end to end, among those known."""
    count = windows.shape[1] // _RUN
    if not len(known) or not count:
        return np.zeros(len(windows), dtype=np.bool_)
    runs = windows[:, : count * _RUN].reshape(-1, count, _RUN).astype(np.uint64) @ _WEIGHTS
    shared: NDArray[np.bool_] = np.asarray(np.isin(runs, known).any(axis=1))
    return shared


def _pieces(document: str) -> Iterator[str]:
    """A document in parts that a tokenizer, which needs a hundred times their size, takes at once: whole words."""
    start = 0
    while len(document) - start > _PIECE:
        # before a single space or line end, which most tokenizers take with the word that follows
        found = _GAP.search(document, start + _PIECE // 2, start + _PIECE)
        end = start + _PIECE if found is None else found.start()
        yield document[start:end]
        start = end
    yield document[start:]


def _ids(documents: Iterable[str], tokenizer: Any, special: bool = True) -> Iterator[int]:
    """Documents one after the other, an end-of-text token after each where the tokenizer has one.

    Args:
        special: with special tokens at all.
    """
    for document in documents:
        for number, piece in enumerate(_pieces(document)):
            yield from tokenizer(piece, verbose=False, add_special_tokens=special and number == 0)["input_ids"]
        if special and tokenizer.eos_token_id is not None:
            yield tokenizer.eos_token_id


def open_text(
    place: Path, selection_tokens: int, *, vocabulary: int, name: str, seed: int, weights: Sequence[int] = (1,)
) -> Text:
    """Give the windows that `pack` wrote, parted into those to train on and those to choose on.

    Args:
        selection_tokens: of all texts, each giving its share.
        vocabulary: how many token ids the model called `name` knows.
        seed: of the order.
        weights: shares of the texts.

    Raises:
        ConvertAttnError: tokens that the model does not know.
    """
    parts, chosen = [], []
    for number, weight in enumerate(weights):
        count, length = json.loads((place / _SHAPE.format(number)).read_text())
        path = place / _TOKENS.format(number)
        windows: NDArray[np.int32] = np.memmap(path, dtype=np.int32, mode="r", shape=(count, length))
        _check_ids(windows, vocabulary, name)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        each = max(1, int((windows >= 0).sum()) // count)  # tokens: pairs are of several lengths
        kept = max(1, min(selection_tokens * weight // sum(weights) // each, count // _MOST_SELECTION))
        chosen.append(torch.from_numpy(windows[order[:kept].numpy()].astype(np.int64)))
        parts.append(Part(windows, order[kept:], seed))
    apart = [_apart(part, chosen[:number] + chosen[number + 1 :], name) for number, part in enumerate(parts)]
    return Text(tuple(apart), tuple(weights), torch.cat(chosen))


def _apart(part: Part, chosen: list[Tensor], name: str) -> Part:
    """A text without those windows to train on that other texts have to choose on.

    Raises:
        ConvertAttnError: that is all of them.
    """
    if not chosen:
        return part
    if has_sides(chosen[0]):  # a pair is known by the whole of it
        rows = {row.numpy().tobytes() for windows in chosen for row in windows.to(torch.int32)}
        fresh = [part.windows[int(place)].tobytes() not in rows for place in part.order]
        return _left(part, torch.tensor(fresh, dtype=torch.bool), name)
    known = np.unique(np.concatenate([_runs(row.numpy()) for windows in chosen for row in windows]))
    shared = [_shares(part.windows[places.numpy()].astype(np.int64), known) for places in part.order.split(4096)]
    return _left(part, torch.from_numpy(~np.concatenate(shared)), name)


def _left(part: Part, fresh: Tensor, name: str) -> Part:
    """A text with those windows to train on that are marked.

    Raises:
        ConvertAttnError: there are none.
    """
    order = part.order[fresh]
    if not len(order):
        raise ConvertAttnError(
            f"one of the texts for '{name}' has nothing to train on that another does not have to choose on: give "
            "different texts"
        )
    return replace(part, order=order)


def _check_ids(windows: NDArray[np.int32], vocabulary: int, name: str) -> None:
    least, most = int(windows.min()), int(windows.max())
    if least < (MARK if has_sides(torch.from_numpy(windows[:1].copy())) else 0) or most >= vocabulary:
        raise ConvertAttnError(
            f"the text has the token id {least if least < 0 else most} but '{name}' knows 0 to {vocabulary - 1}: the "
            "tokens are another model's; use the tokenizer that belongs to this one"
        )
