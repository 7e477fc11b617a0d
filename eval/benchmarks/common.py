"""What several benchmarks read and keep: windows of token ids, models in float32, rows of earlier runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


def token_windows(path: Path, limit: int | None = None) -> Tensor:
    """A .npy file of token ids [n, length], at most `limit` windows of it."""
    return torch.from_numpy(np.load(path).astype(np.int64))[:limit]


def load_model(folder: Path) -> Any:
    """A causal language model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def result_options(drawn: str) -> Callable[[Any], Any]:
    """The options --with (earlier), --json (json_file) and --png of a benchmark whose rows can be joined."""
    path = click.Path(path_type=Path)
    there = click.Path(exists=True, path_type=Path)

    def add(command: Any) -> Any:
        command = click.option("--png", type=path, help=f"Draw {drawn} here.")(command)
        command = click.option("--json", "json_file", type=path, help="Keep the numbers here.")(command)
        return click.option("--with", "earlier", type=there, multiple=True, help="Rows of an earlier --json.")(command)

    return add
