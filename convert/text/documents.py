"""Text to calibrate or measure on, as a stream of documents: a file, or a dataset of the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.text.rows import RowReading, checked, lines, open_text

LONGEST = 1 << 24
"""Characters of the longest document; a longer one is handed out in pieces, so that no file has to fit in memory."""

FIELD = "text"
_SEPARATOR = "<|endoftext|>"


def read_documents(spec: str | Path) -> Iterator[str]:
    """Give the documents of a text, in order; blank ones are left out, nothing is read ahead of need.

    Args:
        spec: one of
            a parquet file (`.parquet`): the rows of its column `text`;
            JSON lines (`.jsonl`, `.ndjson`, `.json`): the field `text` of each line;
            any other file: UTF-8 text, one document unless form feeds, or lines that are `<|endoftext|>`, part it;
            `name`, `name:config` or `name:config:split`: a dataset of the Hub with a column `text`, read as a stream.
              Without a split it must have only one; `name::split` is the split of the only config.
            What exists as a file is taken for a file. Documents of more than `LONGEST` characters come in pieces.

    Raises:
        UsageError: no such file, or `spec` cannot name a dataset. At the call; the rest when it is met:
        ConvertAttnError: what cannot be read, where (line or row), and what was expected there.
    """
    return _not_empty(str(spec), open_text(str(spec), _TEXT, _plain))


def split_documents(text: str) -> list[str]:
    """Give the documents of a text in memory, parted by lines that are `<|endoftext|>`; blank ones are left out."""
    return [document for document in text.split(f"{_SEPARATOR}\n") if document.strip()]


def _not_empty(name: str, documents: Iterator[str]) -> Iterator[str]:
    """What is not blank, in pieces of at most LONGEST characters.

    Raises:
        ConvertAttnError: nothing was.
    """
    count = 0
    for document in documents:
        if document.strip():
            count += 1
            for start in range(0, len(document), LONGEST):
                yield document[start : start + LONGEST]
    if not count:
        raise ConvertAttnError(f"text '{name}' is empty: expected at least one document that is not blank")


def _plain(path: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for _, line in lines(path):
        if line.strip() == _SEPARATOR:
            yield "".join(held)
            held, size = [], 0
            continue
        *whole, rest = line.split("\f")
        for part in whole:
            yield "".join([*held, part])
            held, size = [], 0
        held.append(rest)
        size += len(rest)
        if size >= LONGEST:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _columns(names: Sequence[str], where: str) -> list[str]:
    if FIELD not in names:
        raise ConvertAttnError(f"{where} has no column '{FIELD}', only {', '.join(map(repr, names)) or 'none'}")
    return [FIELD]


def _made(row: Mapping[str, Any], where: str) -> str:
    return checked(row, FIELD, where)


def _fields(row: Mapping[str, Any], where: str) -> str:
    if FIELD not in row:
        raise ConvertAttnError(f"{where} has no field '{FIELD}', only {', '.join(map(repr, row)) or 'none'}")
    return checked(row, FIELD, where)


_TEXT = RowReading(columns=_columns, made=_made, fields=_fields, expected='{"text": ...}')
