"""Text to calibrate or measure on, as a stream of documents: a file, or a dataset of the Hub."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import ConvertAttnError, UsageError

LONGEST = 1 << 24
"""Characters of the longest document; a longer one is handed out in pieces, so that no file has to fit in memory."""

_FIELD = "text"
_SEPARATOR = "<|endoftext|>"
_PACKED = (".gz", ".xz", ".bz2", ".zip", ".zst")


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
    name = str(spec)
    path = _path(name)
    if path.is_dir():
        raise UsageError(f"text '{name}' is a folder: give a .txt, .jsonl or .parquet file, or a dataset of the Hub")
    if path.exists():
        return _not_empty(name, _reader(path)(path))
    suffixes = (".txt", ".md", ".parquet", *_JSON, *_PACKED)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix.lower() in suffixes:
        raise UsageError(f"text '{name}' is not there: give a file, or a dataset of the Hub as name:config:split")
    parts = name.split(":")
    if len(parts) > 3 or not parts[0]:
        raise UsageError(f"text '{name}' is neither a file nor a dataset: write a dataset as name:config:split")
    return _not_empty(name, _from_hub(name, *parts))


def split_documents(text: str) -> list[str]:
    """Give the documents of a text in memory, parted by lines that are `<|endoftext|>`; blank ones are left out."""
    return [document for document in text.split(f"{_SEPARATOR}\n") if document.strip()]


def _path(name: str) -> Path:
    if not name.strip():
        raise UsageError("the name of the text is empty: give a file, or a dataset of the Hub as name:config:split")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~name of a user who does not exist
        raise UsageError(f"text '{name}' is no path: {error}") from None


def _reader(path: Path) -> Callable[[Path], Iterator[str]]:
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        raise UsageError(f"text '{path}' is compressed: unpack it first")
    if suffix == ".parquet":
        return _parquet
    return _json_lines if suffix in _JSON else _plain


_JSON = (".jsonl", ".ndjson", ".json")


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


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines with their ends; very long lines come in parts under the same number."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    with path.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        while True:
            raw = file.readline(LONGEST)
            ended = raw.endswith(b"\n") or not raw
            try:
                line = decoder.decode(raw, final=ended)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise ConvertAttnError(
                    f"text '{path}' is not UTF-8: byte 0x{byte:02x} in line {number}; convert it to UTF-8 first"
                ) from None
            if not raw:
                return
            yield number, line
            number += ended


def _plain(path: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for _, line in _lines(path):
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


def _json_lines(path: Path) -> Iterator[str]:
    held = ""
    for number, part in _lines(path):
        held += part
        if held.endswith("\n"):
            if held.strip():
                yield _json_text(path, number, held)
            held = ""
    if held.strip():
        yield _json_text(path, number, held)


def _json_text(path: Path, number: int, line: str) -> str:
    where = f"line {number} of '{path}'"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConvertAttnError(f'{where} is not JSON ({error}): expected one {{"text": ...}} per line') from None
    if not isinstance(row, dict):
        raise ConvertAttnError(f'{where} holds no object but {type(row).__name__}: expected {{"text": ...}}')
    if _FIELD not in row:
        raise ConvertAttnError(f"{where} has no field '{_FIELD}', only {', '.join(map(repr, row)) or 'none'}")
    return _checked(row[_FIELD], where)


def _checked(value: object, where: str) -> str:
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise ConvertAttnError(f"'{_FIELD}' in {where} holds {found}: expected a string")
    return value


def _parquet(path: Path) -> Iterator[str]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ConvertAttnError(f"reading '{path}' needs pyarrow: `pip install pyarrow`") from None
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, f"'{path}'")
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[_FIELD]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _checked(value, f"row {row} of '{path}'")
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConvertAttnError(f"'{path}' cannot be read as parquet: {reason}") from None


def _check_columns(names: list[str] | None, where: str) -> None:
    if names is not None and _FIELD not in names:
        raise ConvertAttnError(f"{where} has no column '{_FIELD}', only {', '.join(map(repr, names)) or 'none'}")


def _from_hub(spec: str, name: str, config: str = "", split: str = "") -> Iterator[str]:
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise ConvertAttnError(
            f"'{spec}' is no file, and reading a dataset of the Hub needs datasets: `pip install datasets`"
        ) from None
    rows = _open_dataset(datasets, spec, name, config, split)
    _check_columns(rows.column_names, f"dataset '{spec}'")
    try:
        for number, row in enumerate(rows, start=1):
            if number == 1:
                _check_columns(list(row), f"dataset '{spec}'")
            yield _checked(row[_FIELD], f"row {number} of dataset '{spec}'")
    except ConvertAttnError:
        raise
    except Exception as error:  # the HTTP client's, the formats' own
        raise ConvertAttnError(f"reading dataset '{spec}' failed: {_reason(error)}") from None


def _open_dataset(datasets: Any, spec: str, name: str, config: str, split: str) -> Any:
    try:
        found = datasets.load_dataset(name, config or None, split=split or None, streaming=True)
    except Exception as error:  # not there, no network, a wrong config or split: each has its own class
        raise ConvertAttnError(
            f"text '{spec}' is no file, and the Hub gives no such dataset: {_reason(error)}"
        ) from None
    if split:
        return found
    if len(found) != 1:
        raise UsageError(f"dataset '{spec}' has the splits {', '.join(found)}: name one, as name:config:split")
    return next(iter(found.values()))


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
