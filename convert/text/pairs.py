"""Pairs of a source and a target text, which an encoder-decoder is for: from a file, or a dataset of the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.text.documents import FIELD
from convert_attn.convert.text.rows import RowReading, checked, has_rows, open_text

Pair = tuple[str, str]
"""A source and the target that belongs to it."""

FIELDS = (("source", "target"), ("document", "summary"), ("article", "highlights"))
_LANGUAGES = "translation"  # {"translation": {"en": ..., "de": ...}}: from the first language to the second
_KNOWN = ", ".join(f"'{source}' and '{target}'" for source, target in FIELDS)


def read_pairs(spec: str | Path) -> Iterator[Pair]:
    """Give the pairs of a text, in order; those with a blank side are left out, nothing is read ahead of need.

    Args:
        spec: a parquet file, JSON lines or a dataset of the Hub, as `read_documents` takes them, whose rows have one of
            the pairs of `FIELDS`, or `translation` with a text for each of two languages, from the first to the second.

    Raises:
        UsageError: no such file, a file without rows, or `spec` cannot name a dataset. At the call; the rest when it is
            met:
        ConvertAttnError: what cannot be read, where (line or row), and what was expected there.
    """
    return _not_empty(str(spec), open_text(str(spec), _PAIR, None))


def holds_pairs(spec: str | Path) -> bool:
    """Tell whether a text is of pairs, by its first row; plain text, and rows with a field `text`, are documents.

    Raises:
        UsageError, ConvertAttnError: it cannot be read; or its rows are neither.
    """
    if not has_rows(str(spec)):
        return False
    return next(open_text(str(spec), _EITHER, None), False)


def _not_empty(name: str, pairs: Iterator[Pair]) -> Iterator[Pair]:
    kept = (pair for pair in pairs if pair[0].strip() and pair[1].strip())
    first = next(kept, None)
    if first is None:
        raise ConvertAttnError(f"text '{name}' is empty: expected at least one pair whose sides are not blank")
    yield from chain([first], kept)


def _names(names: Sequence[str], where: str) -> list[str]:
    for known in (*FIELDS, (_LANGUAGES,)):
        if all(name in names for name in known):
            return [*known]
    raise ConvertAttnError(
        f"{where} has no pairs, only {', '.join(map(repr, names)) or 'nothing'}: expected {_KNOWN}, or '{_LANGUAGES}' "
        "with two languages; rename what is the source and what is the target"
    )


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    names = _names([*row], where)
    if len(names) == 2:
        return checked(row, names[0], where), checked(row, names[1], where)
    both = row[_LANGUAGES]
    if not isinstance(both, dict) or len(both) != 2:
        found = ", ".join(map(repr, both)) if isinstance(both, dict) else type(both).__name__
        raise ConvertAttnError(
            f"'{_LANGUAGES}' in {where} holds {found}: expected two languages, the source's and the target's"
        )
    first, second = both
    return checked(both, first, f"'{_LANGUAGES}' in {where}"), checked(both, second, f"'{_LANGUAGES}' in {where}")


def _either(row: Mapping[str, Any], where: str) -> bool:
    return FIELD not in row and bool(_names([*row], where))


_PAIR = RowReading(columns=_names, made=_pair, fields=_pair, expected='{"source": ..., "target": ...}')
_EITHER = RowReading(
    columns=lambda names, where: [FIELD] if FIELD in names else _names(names, where),
    made=_either,
    fields=_either,
    expected='{"source": ..., "target": ...} or {"text": ...}',
)
