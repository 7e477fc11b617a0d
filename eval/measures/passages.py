"""The text that models are measured on: documents as windows of tokens, each token knowing its document."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.samples import general_heldout_text, heldout_text
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.documents import read_documents, split_documents
from convert_attn.convert.text.encoder_windows import framed, plain_tokens
from convert_attn.convert.text.pair_windows import both_sides, count_tokens, halves, paired, tokenised
from convert_attn.convert.text.pairs import holds_pairs, read_pairs
from convert_attn.convert.text.sounds import EXPECTED

BUNDLED = "bundled held-out text: 12 modules of the Python standard library"
GENERAL = "bundled held-out text of several kinds"
_MOST_DOCUMENTS = 4096  # of a text for an encoder
_MODULE = re.compile(r"^(?=# Lib/)", re.MULTILINE)


@dataclass(frozen=True)
class Passages:
    """Windows of a text.

    Attributes:
        windows: [n, length] token ids; the documents follow each other without a separator. Where the tokenizer puts
            a beginning-of-sequence token before a text, every window begins with it. For a model with an encoder they
            are sources and targets, see `pair_windows`.
        documents: [n, length] the document of each token, or of each of the target.
        bytes_per_token: of the documents, or of what is written of them, in UTF-8.
        two_sides: they are sources and targets.
    """

    windows: Tensor
    documents: Tensor
    bytes_per_token: float
    two_sides: bool = False

    @property
    def targets(self) -> Tensor:
        """[n, T] the tokens that are predicted, below 0 what is none: all, or those of targets."""
        return both_sides(self.windows)[1] if self.two_sides else self.windows

    @property
    def tokens(self) -> int:
        """Predicted tokens: all but each window's first."""
        return count_tokens(self.targets) - len(self.windows)

    @property
    def length(self) -> int:
        """Tokens of a window, of which pairs have different numbers: then those of a target, on average."""
        return round(count_tokens(self.targets) / len(self.windows))

    @property
    def digest(self) -> str:
        """Changes when any token does."""
        shape = str(tuple(self.windows.shape)).encode()
        return hashlib.sha256(shape + self.windows.numpy().tobytes()).hexdigest()[:16]

    def clusters(self) -> tuple[Tensor, str]:
        """Tell what standard errors take as independent: [n, length] indices from 0, and "document" or "window".

        Documents where there are two or more in the windows, else windows; pairs are documents.
        """
        found = self.documents.unique()
        if len(found) > 1:
            return torch.searchsorted(found, self.documents), "document"
        return torch.arange(len(self.windows))[:, None].expand_as(self.windows), "window"


def general_text() -> str:
    """Give the bundled held-out text of several kinds, documents with lines `<|endoftext|>` between them."""
    return general_heldout_text()


def bundled_documents() -> list[str]:
    """Give the modules of the held-out text."""
    return [module for module in _MODULE.split(heldout_text()) if module.strip()]


def documents_of(text: str | None, encoder: bool = False) -> Iterator[str]:
    """Give the documents of a file or dataset, or of the bundled text: that of several kinds for an encoder."""
    if text is None and encoder:
        return iter(split_documents(general_text()))
    return iter(bundled_documents()) if text is None else read_documents(text)


def make_texts(tokenizer: Any, documents: Iterable[str], length: int, max_tokens: int) -> Passages:
    """Give texts as an encoder meets them: windows with the tokenizer's special tokens at both ends, each for itself.

    Args:
        length: of a window in tokens, the special ones counted.

    Raises:
        ConvertAttnError: no token in the text.
    """
    read = list(islice(documents, _MOST_DOCUMENTS))
    ids = plain_tokens(read, tokenizer, max_tokens)
    if not ids:
        raise ConvertAttnError("the text has no token: give another --text")
    windows = framed(ids, tokenizer, length)
    size = sum(len(document.encode()) for document in read)
    owners = torch.arange(len(windows))[:, None].expand_as(windows)
    return Passages(windows, owners, size / len(ids))


def make_pairs(tokenizer: Any, text: str | None, length: int, max_tokens: int, decoder: Decoder) -> Passages:
    """Give sources and targets, each pair for itself: of a text of pairs, or the halves of windows of another.

    Args:
        text: as `documents_of` and `read_pairs` take it.
        length: tokens of a side at most, or of a window where a text is halved.
        max_tokens: of both sides together.

    Raises:
        UsageError: no pairs for a model that reads sounds.
        ConvertAttnError: no token in the text, or a sound that cannot be read.
    """
    if text is None or not holds_pairs(text):
        if decoder.sounds is not None:
            raise UsageError(f"'{decoder.sounds.name}' reads sounds: give --text {EXPECTED}")
        documents = list(islice(documents_of(text, encoder=True), _MOST_DOCUMENTS))
        ids = plain_tokens(documents, tokenizer, max_tokens)
        if not ids:
            raise ConvertAttnError("the text has no token: give another --text")
        windows = halves(ids, tokenizer, length, decoder.start)
        each = sum(len(document.encode()) for document in documents) / len(ids)
    else:
        found, count, size = list[tuple[list[int], ...]](), 0, 0
        for pair in read_pairs(text):
            for sides in tokenised([pair], tokenizer, length, decoder, text):
                found.append(sides)
                size += len(pair[1].encode())
                count += sum(map(len, sides))
            if count >= max_tokens:
                break
        if not found:
            raise ConvertAttnError("the text has no token: give another --text")
        windows, each = paired(found), size / sum(len(target) - 1 for _, target in found)
    owners = torch.arange(len(windows))[:, None].expand_as(both_sides(windows)[1]).contiguous()
    return Passages(windows, owners, each, two_sides=True)


def make_passages(tokenizer: Any, documents: Iterable[str], length: int, max_tokens: int) -> Passages:
    """Give windows of the first `max_tokens` tokens.

    Args:
        length: of a window in tokens.

    Raises:
        ConvertAttnError: the text is shorter than one window.
    """
    first = tokenizer("a", verbose=False)["input_ids"][:1]
    prefix = first if first == [tokenizer.bos_token_id] else []
    body = length - len(prefix)
    wanted = max(1, max_tokens // length) * body
    ids: list[int] = []
    owners: list[Tensor] = []
    size = 0
    for index, document in enumerate(documents):
        found = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        ids += found
        owners.append(torch.full((len(found),), index))
        size += len(document.encode())
        if len(ids) >= wanted:
            break
    count = min(len(ids), wanted) // body
    if count == 0:
        raise ConvertAttnError(
            f"the text has {len(ids)} tokens, fewer than one window of {length}: give a longer --text, or a smaller "
            "--window"
        )
    windows = torch.tensor(ids[: count * body]).reshape(count, body)
    owner = torch.cat(owners)[: count * body].reshape(count, body)
    if prefix:
        windows = torch.cat([torch.full((count, 1), prefix[0]), windows], 1)
        owner = torch.cat([owner[:, :1], owner], 1)
    return Passages(windows, owner, size / len(ids))
