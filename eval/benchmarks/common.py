"""What several benchmarks read and keep: windows of token ids, models in float32, files of results."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

_FILE = click.Path(dir_okay=False, path_type=Path)


def token_windows(path: Path, limit: int | None = None) -> Tensor:
    """Give a .npy file of token ids [n, length], at most `limit` windows of it."""
    return torch.from_numpy(np.load(path).astype(np.int64))[:limit]


def load_model(folder: Path, dtype: torch.dtype | str = torch.float32) -> Any:
    """Give a causal language model, in float32 unless another dtype is given; "auto": as it is stored."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def _writable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuses before the benchmark runs what would fail when it is done."""
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder of '{value}' does not exist: make it first")
    return value


def _drawable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and find_spec("matplotlib") is None:
        raise click.UsageError("--png needs matplotlib: pip install 'convert-attn[plot]', or leave --png out")
    return _writable(context, parameter, value)


json_option = click.option("--json", "json_file", type=_FILE, callback=_writable, help="Keep the numbers here.")


def file_options(drawn: str) -> Callable[[Any], Any]:
    """Give the options --json (json_file) and --png (png) of a benchmark.

    Args:
        drawn: what the picture shows.
    """
    png_option = click.option("--png", type=_FILE, callback=_drawable, help=f"Draw {drawn} here.")
    return lambda command: json_option(png_option(command))


def result_options(drawn: str) -> Callable[[Any], Any]:
    """`file_options`, and --with (earlier) of a benchmark whose rows can be joined."""
    there = click.Path(exists=True, path_type=Path)
    with_option = click.option("--with", "earlier", type=there, multiple=True, help="Rows of an earlier --json.")
    return lambda command: with_option(file_options(drawn)(command))
