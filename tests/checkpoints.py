"""Checkpoint folders as files: written in every format, looked at byte by byte, and run through the command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor

from convert_attn.convert.cli import main

Tensors = dict[str, Tensor]


def save_tiny(folder: Path, model_type: str = "gpt2", **options: Any) -> Path:
    """A tiny random checkpoint as one safetensors file."""
    tiny_model(model_type, **options).save_pretrained(folder)
    return folder


def tensors_of(folder: Path) -> Tensors:
    """Every tensor of a folder's safetensors files."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def shards_of(folder: Path) -> dict[str, list[str]]:
    """The tensor names in each safetensors file, in the file's order."""
    names = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names[file.name] = list(opened.keys())
    return names


def edit_tensors(folder: Path, change: Callable[[Tensors], object], file: str = "model.safetensors") -> Path:
    """Change the tensors of one shard."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
    return folder


def json_of(file: Path) -> dict[str, Any]:
    """A file's JSON object."""
    return dict(json.loads(file.read_text(encoding="utf-8")))


def config_of(folder: Path) -> dict[str, Any]:
    """config.json."""
    return json_of(folder / "config.json")


def edit_config(folder: Path, **values: Any) -> Path:
    """Set keys of config.json; None removes one."""
    config = config_of(folder) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def halves(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Two dicts of about as many tensors each."""
    names = list(tensors)
    middle = len(names) // 2
    return {n: tensors[n] for n in names[:middle]}, {n: tensors[n] for n in names[middle:]}


def _index(folder: Path, name: str, shards: dict[str, Tensors]) -> None:
    weight_map = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def reshard(folder: Path) -> Path:
    """model.safetensors -> two shards and an index."""
    parts = halves(load_file(folder / "model.safetensors"))
    shards = {f"model-0000{i}-of-00002.safetensors": part for i, part in enumerate(parts, 1)}
    for file, part in shards.items():
        save_file(part, folder / file, {"format": "pt"})
    _index(folder, "model.safetensors.index.json", shards)
    (folder / "model.safetensors").unlink()
    return folder


def to_bin(folder: Path, state: dict[str, Any], *, sharded: bool = False, old_format: bool = False) -> Path:
    """model.safetensors -> what torch.save makes of a state dict."""
    parts = halves(state) if sharded else (state,)
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)] if sharded else ["pytorch_model.bin"]
    for name, part in zip(names, parts, strict=True):
        torch.save(part, folder / name, _use_new_zipfile_serialization=not old_format)
    if sharded:
        _index(folder, "pytorch_model.bin.index.json", dict(zip(names, parts, strict=True)))
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the bytes of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        err: what it wrote to stderr besides progress.
        progress: the lines of progress there.
    """

    code: int
    out: str
    err: str
    progress: tuple[str, ...] = ()


_PROGRESS = re.compile(r"(?!Error: )[a-z].* (begins|goes on at \d+/\d+|ends after .*|\d+/\d+ \(\d+ %\), .*)\n")


def split_progress(written: str) -> tuple[str, tuple[str, ...]]:
    """Stderr as what is no line of progress, and the lines that are."""
    lines = written.splitlines(keepends=True)
    shown = tuple(line.rstrip("\n") for line in lines if _PROGRESS.fullmatch(line))
    return "".join(line for line in lines if not _PROGRESS.fullmatch(line)), shown


class Command:
    """`convert-attn` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        """Run it as the console script does."""
        self._monkeypatch.setattr(sys, "argv", ["convert-attn", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = self._capsys.readouterr()
        err, shown = split_progress(captured.err)
        return Outcome(exit_info.value.code or 0, captured.out, err, shown)  # type: ignore[arg-type]


def besides_text(warnings: Iterable[str]) -> list[str]:
    """Warnings, but for that on tiny models without text that they could be fitted on."""
    return [warning for warning in warnings if "fitted from the weights alone" not in warning]
