"""Documents from files and datasets: what parts them, what is refused, and where."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from convert_attn import ConvertAttnError, UsageError
from convert_attn.convert.text import documents as text
from convert_attn.convert.text import rows
from convert_attn.convert.text.documents import read_documents


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_plain_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    content = "first\r\n\nsecond – ü\n\n\nthird"
    assert list(read_documents(_write(tmp_path, "a.txt", content))) == [content]
    assert list(read_documents(_write(tmp_path, "b", b"\xef\xbb\xbf" + content.encode()))) == [content]


def test_form_feeds_and_separator_lines_part_documents(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.txt", "one\ntwo\n<|endoftext|>\nthree\f four <|endoftext|>\n\f\f \nfive")
    assert list(read_documents(path)) == ["one\ntwo\n", "three", " four <|endoftext|>\n", " \nfive"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    rows = ["alpha\nbeta", "", "gamma ü"]
    lines = "\n\n".join(json.dumps({"id": 1, "text": row}, ensure_ascii=False) for row in rows)
    assert list(read_documents(_write(tmp_path, name, lines))) == ["alpha\nbeta", "gamma ü"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [f"document {index}" for index in range(1000)]
    parquet.write_table(pyarrow.table({"id": range(1000), "text": rows}), tmp_path / "a.parquet")
    assert list(read_documents(tmp_path / "a.parquet")) == rows
    parquet.write_table(pyarrow.table({"body": rows, "id": range(1000)}), tmp_path / "b.parquet")
    with pytest.raises(ConvertAttnError, match=r"b.parquet' has no column 'text', only 'body', 'id'"):
        next(read_documents(tmp_path / "b.parquet"))
    parquet.write_table(pyarrow.table({"text": ["x", None]}), tmp_path / "c.parquet")
    with pytest.raises(ConvertAttnError, match=r"'text' in row 2 of .*c.parquet' holds nothing: expected a string"):
        list(read_documents(tmp_path / "c.parquet"))
    with pytest.raises(ConvertAttnError, match=r"d.parquet' cannot be read as parquet"):
        list(read_documents(_write(tmp_path, "d.parquet", "not parquet")))


def test_long_documents_come_in_pieces_that_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST", 16)
    monkeypatch.setattr(rows, "PIECE", 16)
    content = "".join(f"line {'ü' * index}\n" for index in range(40))
    pieces = list(read_documents(_write(tmp_path, "a.txt", content)))
    assert "".join(pieces) == content
    assert max(map(len, pieces)) <= 16
    assert "".join(read_documents(_write(tmp_path, "b.jsonl", json.dumps({"text": content})))) == content


def test_nothing_is_read_ahead_of_need(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", '{"text": "good"}\n' + '{"text": "more"}\n' * 5000 + "broken\n")
    documents = read_documents(path)
    assert next(documents) == "good"
    with pytest.raises(ConvertAttnError, match=r"line 5002 of .* is not JSON"):
        list(documents)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "is empty: expected at least one document"),
        ("a.txt", b" \n\f\n", "is empty: expected at least one document"),
        ("a.txt", b"good\nb\xe4d\n", "is not UTF-8: byte 0xe4 in line 2"),
        ("a.txt", b"good\nbad \xc3", "is not UTF-8: byte 0xc3 in line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 of .* is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', "line 2 of .* has no field 'text', only 'body'"),
        ("a.jsonl", b'{"text": 3}\n', "'text' in line 1 of .* holds int: expected a string"),
        ("a.jsonl", b"[1]\n", "line 1 of .* holds no object but list"),
        ("a.jsonl", b'{"text": "\xff"}\n', "is not UTF-8: byte 0xff in line 1"),
        ("a.txt.gz", b"", "is compressed: unpack it first"),
    ],
)
def test_bad_files_say_what_and_where(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    with pytest.raises(ConvertAttnError, match=sentence):
        list(read_documents(_write(tmp_path, name, content)))


@pytest.mark.parametrize("name", ["./missing", "missing.txt", "a/b/c", "missing.parquet", " ", "a:b:c:d", ":c"])
def test_names_that_are_no_text_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(name)):
        read_documents(name)
    with pytest.raises(UsageError, match=r"is a folder"):
        read_documents(tmp_path)


def test_a_dataset_needs_its_library_and_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConvertAttnError, match=r"'wikitext:a:train' is no file.* needs datasets: `pip install datasets`"
    ):
        next(read_documents("wikitext:a:train"))


def test_a_dataset_that_is_not_to_be_had() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(ConvertAttnError, match=r"'no/such:a:train' is no file, and the Hub gives no such dataset"):
        next(read_documents("no/such:a:train"))


def test_dataset_splits_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the working directory is a dataset to `datasets`, as a Hub id is; here a stand-in for the Hub."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a", "", "b"]}).to_iterable_dataset()
    both = {"train": rows, "test": rows}

    def load(name: str, config: str | None, *, split: str | None, streaming: bool) -> object:
        assert streaming
        if name == "bare":
            return datasets.Dataset.from_dict({"body": ["a"]}).to_iterable_dataset()
        found = both if config == "two" else {"train": rows}
        return found[split] if split else found

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_documents("some/set:two:test")) == ["a", "b"]
    assert list(read_documents("some/set::train")) == ["a", "b"]
    assert list(read_documents("some/set")) == ["a", "b"]
    with pytest.raises(UsageError, match=r"has the splits train, test: name one"):
        list(read_documents("some/set:two"))
    with pytest.raises(ConvertAttnError, match=r"dataset 'bare:a:train' has no column 'text', only 'body'"):
        list(read_documents("bare:a:train"))
