"""Rows of a JSON-lines file, a parquet file or a dataset of the Hub, one after the other, whatever is read of them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from convert_attn.convert.errors import ConvertAttnError, UsageError

T = TypeVar("T")

PIECE = 1 << 24  # bytes of a line that are read at once
JSON, PACKED = (".jsonl", ".ndjson", ".json"), (".gz", ".xz", ".bz2", ".zip", ".zst")


@dataclass(frozen=True)
class RowReading(Generic[T]):
    """What is read of a row.

    Attributes:
        columns: of the columns that there are, and where, to those that are read; raises ConvertAttnError.
        made: a row that has these columns, and where it is, to what it stands for; raises ConvertAttnError.
        fields: what is read of JSON, and where, to what it stands for; raises ConvertAttnError.
        expected: an example of a row, as JSON.
    """

    columns: Callable[[Sequence[str], str], list[str]]
    made: Callable[[Mapping[str, Any], str], T]
    fields: Callable[[Mapping[str, Any], str], T]
    expected: str


def open_text(name: str, reading: RowReading[T], plain: Callable[[Path], Iterator[T]] | None) -> Iterator[T]:
    """Give what is read of a file or of a dataset of the Hub; see `documents.read_documents`.

    Args:
        plain: reads a file that has no rows; None: there must be rows.

    Raises:
        UsageError: no such file, or `name` cannot be a dataset. At the call; the rest when it is met:
        ConvertAttnError: what cannot be read, where (line or row), and what was expected there.
    """
    path = _path(name)
    if path.is_dir():
        raise UsageError(f"text '{name}' is a folder: give a .txt, .jsonl or .parquet file, or a dataset of the Hub")
    if path.exists():
        return _of_file(path, reading, plain)
    suffixes = (".txt", ".md", ".parquet", *JSON, *PACKED)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix.lower() in suffixes:
        raise UsageError(f"text '{name}' is not there: give a file, or a dataset of the Hub as name:config:split")
    parts = name.split(":")
    if len(parts) > 3 or not parts[0]:
        raise UsageError(f"text '{name}' is neither a file nor a dataset: write a dataset as name:config:split")
    return _from_hub(reading, name, *parts)


def has_rows(name: str) -> bool:
    """Tell whether a text is made of rows with fields; else it is plain text."""
    path = _path(name)
    return not path.exists() or path.suffix.lower() in (".parquet", *JSON)


def _path(name: str) -> Path:
    if not name.strip():
        raise UsageError("the name of the text is empty: give a file, or a dataset of the Hub as name:config:split")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~name of a user who does not exist
        raise UsageError(f"text '{name}' is no path: {error}") from None


def _of_file(path: Path, reading: RowReading[T], plain: Callable[[Path], Iterator[T]] | None) -> Iterator[T]:
    suffix = path.suffix.lower()
    if suffix in PACKED:
        raise UsageError(f"text '{path}' is compressed: unpack it first")
    if suffix == ".parquet":
        return _parquet(path, reading)
    if suffix in JSON:
        return _json_lines(path, reading)
    if plain is None:
        raise UsageError(f"text '{path}' has no rows: give a .jsonl or .parquet file, one {reading.expected} per row")
    return plain(path)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines with their ends; very long lines come in parts under the same number."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    with path.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        while True:
            raw = file.readline(PIECE)
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


def _json_lines(path: Path, reading: RowReading[T]) -> Iterator[T]:
    held = ""
    for number, part in lines(path):
        held += part
        if held.endswith("\n"):
            if held.strip():
                yield _of_line(path, number, held, reading)
            held = ""
    if held.strip():
        yield _of_line(path, number, held, reading)


def _of_line(path: Path, number: int, line: str, reading: RowReading[T]) -> T:
    where = f"line {number} of '{path}'"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConvertAttnError(f"{where} is not JSON ({error}): expected one {reading.expected} per line") from None
    if not isinstance(row, dict):
        raise ConvertAttnError(f"{where} holds no object but {type(row).__name__}: expected {reading.expected}")
    return reading.fields(row, where)


def checked(row: Mapping[str, Any], field: str, where: str) -> str:
    """Give a field of a row, which must be text.

    Raises:
        ConvertAttnError: it is not.
    """
    value = row[field]
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise ConvertAttnError(f"'{field}' in {where} holds {found}: expected a string")
    return value


def _parquet(path: Path, reading: RowReading[T]) -> Iterator[T]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ConvertAttnError(f"reading '{path}' needs pyarrow: `pip install pyarrow`") from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = reading.columns(file.schema_arrow.names, f"'{path}'")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield reading.made(row, f"row {number} of '{path}'")
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConvertAttnError(f"'{path}' cannot be read as parquet: {reason}") from None


def _from_hub(reading: RowReading[T], spec: str, name: str, config: str = "", split: str = "") -> Iterator[T]:
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise ConvertAttnError(
            f"'{spec}' is no file, and reading a dataset of the Hub needs datasets: `pip install datasets`"
        ) from None
    rows = _open_dataset(datasets, spec, name, config, split)
    if rows.column_names is not None:
        reading.columns(rows.column_names, f"dataset '{spec}'")
    try:
        for number, row in enumerate(rows, start=1):
            if number == 1:
                reading.columns(list(row), f"dataset '{spec}'")
            yield reading.made(row, f"row {number} of dataset '{spec}'")
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
