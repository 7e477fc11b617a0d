"""Readers and options fed with what nobody foresaw. `--slow` runs 10 000 cases of each."""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from checkpoints import contents, edit_config, reshard, save_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert_attn import ConvertAttnError
from convert_attn.convert.checkpoint.safetensors_format import SIZES, build_header, read_header
from convert_attn.convert.checkpoint.shards import open_weights
from convert_attn.convert.cli import commands as cli
from convert_attn.convert.stored_numbers import DTYPES

Test = Callable[..., None]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
COUNTS = st.integers(0, 40) | st.integers() | st.sampled_from([2**31, 2**63, 2**64, -1, 1.5, True, None, "1"])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*SIZES, "F8_E4M3", "f32", ""]) | JSON,
        "shape": st.lists(COUNTS, max_size=4) | JSON,
        "data_offsets": st.tuples(COUNTS, COUNTS) | JSON,
        "more": JSON,
    },
)
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__", ""]), ENTRIES | JSON, max_size=4)
BYTES = st.binary(max_size=64)


def cases(slow: bool, few: int) -> Callable[[Test], Test]:
    """How many, the same ones every time."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=10_000 if slow else few,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
    )


def check_header(path: Path, data: bytes) -> bool:
    """Read a header; whether it was accepted. Then every tensor lies within the file."""
    path.write_bytes(data)
    try:
        infos, metadata = read_header(path)
    except ConvertAttnError:
        return False
    assert all(info.offset >= 0 and info.offset + info.nbytes <= len(data) for info in infos)
    assert len({info.name for info in infos}) == len(infos)
    assert all(isinstance(text, str) for text in metadata.values())
    return True


def test_a_header_of_any_bytes_is_read_or_refused(tmp_path: Path, slow: bool) -> None:
    @cases(slow, 300)
    @given(BYTES, BYTES, st.none() | st.integers(0, 2**64 - 1))
    def run(raw: bytes, body: bytes, length: int | None) -> None:
        prefix = struct.pack("<Q", len(raw) if length is None else length)
        check_header(tmp_path / "model.safetensors", prefix + raw + body)

    run()


def test_a_header_of_any_json_is_read_or_refused(tmp_path: Path, slow: bool) -> None:
    accepted = []

    @cases(slow, 500)
    @given(HEADERS, BYTES)
    def run(header: dict[str, Any], body: bytes) -> None:
        raw = json.dumps(header).encode()
        accepted.append(check_header(tmp_path / "model.safetensors", struct.pack("<Q", len(raw)) + raw + body))

    run()
    assert not all(accepted)


NAMES = st.text(max_size=12)
TENSORS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(list(SIZES)), st.lists(st.integers(0, 3), max_size=3)),
    max_size=5,
)


def test_sizes_of_numbers_are_those_of_torch() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == SIZES


def test_what_is_written_is_read_back(tmp_path: Path, slow: bool) -> None:
    """The reader refuses nothing that the writer makes, whatever the names."""
    from convert_attn.convert.checkpoint.safetensors_format import TensorInfo

    @cases(slow, 200)
    @given(TENSORS, st.dictionaries(NAMES, NAMES, max_size=3))
    def run(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]) -> None:
        infos = [
            TensorInfo(name=name, dtype=dtype, shape=tuple(shape), file="m", offset=0)
            for name, (dtype, shape) in tensors.items()
        ]
        header, offsets = build_header(infos, metadata)
        path = tmp_path / "model.safetensors"
        path.write_bytes(header + bytes(sum(info.nbytes for info in infos)))
        found, kept = read_header(path)
        assert {(info.name, info.dtype, info.shape, info.offset) for info in found} == {
            (info.name, info.dtype, info.shape, offsets[info.name]) for info in infos
        }
        assert kept == metadata

    run()


def test_an_index_of_anything_is_read_or_refused(tmp_path: Path, slow: bool) -> None:
    folder = reshard(save_tiny(tmp_path / "in"))
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())["weight_map"]
    files = st.sampled_from(
        [*set(whole.values()), "config.json", "..", "../x.safetensors", "/etc/passwd", "", "a/b", "\0"]
    )
    maps = st.dictionaries(st.sampled_from(list(whole)) | NAMES, files | JSON, max_size=3).map(lambda new: whole | new)

    @cases(slow, 300)
    @given(st.fixed_dictionaries({"weight_map": maps | JSON}) | JSON | BYTES)
    def run(content: Any) -> None:
        index.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        try:
            weights = open_weights(folder)
        except ConvertAttnError:
            return
        assert weights.metadata.keys() <= set(whole.values())  # files of the folder and nothing else
        assert weights.infos.keys() <= whole.keys()

    run()


# --- options


def _values(parameter: click.Parameter) -> st.SearchStrategy[str]:
    """What a user could type for an option, and could not."""
    words = ["0", "1", "2", "3", "8", "16", "-1", "0.5", "1e9", "nan", "inf", "", "x", "2" * 40, "auto", "ö", "../x"]
    if isinstance(parameter.type, click.Choice):
        words += list(parameter.type.choices) * 4
    return st.sampled_from(words)


# the network and the machine are not asked
_LEFT_OUT = {"push", "private", "revision", "device", "help", "calibration"}


def command_lines() -> st.SearchStrategy[list[str]]:
    """Options of `convert` in any combination."""
    pairs = []
    for parameter in cli.convert.params:
        if not isinstance(parameter, click.Option) or set(map(_plain, parameter.opts)) & _LEFT_OUT:
            continue
        name = parameter.opts[0]
        pairs.append(st.just([name]) if parameter.is_flag else _values(parameter).map(lambda v, name=name: [name, v]))
    options = st.lists(st.one_of(pairs), max_size=5).map(lambda found: [word for pair in found for word in pair])
    forms = st.sampled_from(["gqa", "mqa", "mla"])
    return st.tuples(st.sampled_from(["gpt2", "llama"]), forms, options).map(lambda t: [t[0], "--to", t[1], *t[2]])


def _plain(name: str) -> str:
    return name.lstrip("-")


def test_any_options_make_a_plan_or_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    monkeypatch.chdir(tmp_path)
    for model_type in ("gpt2", "llama"):
        save_tiny(tmp_path / model_type, model_type)
    before, codes = contents(tmp_path), []

    @cases(slow, 200)
    @given(command_lines())
    def run(words: list[str]) -> None:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["convert-attn", *words, "--dry-run"])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code or 0
        codes.append(code)
        assert code in (0, 1, 2)
        assert code == 0 or re.fullmatch(r"Error: [^\n]+\n", err.getvalue()), err.getvalue()

    run()
    assert {0, 2} <= set(codes)
    assert contents(tmp_path) == before


CONFIG_VALUES = JSON | st.integers(-3, 300) | st.sampled_from([2**70, 1e300, "64", "gelu", [64], {"rope_type": "yarn"}])


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "phi3"])
def test_a_config_with_any_values_makes_a_plan_or_one_sentence(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    from convert_attn.convert.conversion import api

    folder = save_tiny(tmp_path / "in", model_type)
    keys = sorted(json.loads((folder / "config.json").read_text()))
    original = (folder / "config.json").read_bytes()

    @cases(slow, 100)
    @given(
        st.dictionaries(st.sampled_from(keys), CONFIG_VALUES, min_size=1, max_size=2), st.sampled_from(["gqa", "mla"])
    )
    def run(values: dict[str, Any], to: str) -> None:
        (folder / "config.json").write_bytes(original)
        edit_config(folder, **values)
        with contextlib.suppress(ConvertAttnError):
            api.plan(folder, to=to, cache_ratio=0.5, output=tmp_path / "out")

    run()
