"""Do conversions still see far back? KL to the original and loss on a passage that comes back after a gap.

    python -m convert_attn.eval.benchmarks.far_tokens FOLDER --calibration train.txt --windows test.npy

A passage of 32 tokens is repeated so that it begins 64, 256, 480 tokens after the first time; only the repeat counts.
"ordinary" is the same figure over whole windows of the text.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import Tensor

from convert_attn import convert
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.eval.benchmarks.common import json_option, load_model, token_windows
from convert_attn.eval.measures.losses import sequences
from convert_attn.eval.measures.quality import FIGURES, token_figures

_PASSAGE, _COUNT = 32, 48
DISTANCES = (64, 256, 480)


def figures(original: Any, converted: Any, windows: Tensor) -> Iterator[dict[str, float | str]]:
    """KL and loss in nats per token: ordinary text, then the repeat at each distance."""
    for where in ("ordinary", *DISTANCES):
        tokens = windows if where == "ordinary" else sequences(windows.flatten(), int(where), _PASSAGE, _COUNT)
        kept = slice(None) if where == "ordinary" else slice(1 - _PASSAGE, None)
        parts = [token_figures(converted, batch, original) for batch in tokens.split(8)]
        means = {
            name: float(torch.cat([part[FIGURES.index(name)][:, kept] for part in parts]).double().mean())
            for name in ("kl", "loss", "reference_loss")
        }
        yield {"distance": str(where), **means}


@click.command()
@click.argument("model")
@click.option("--windows", type=click.Path(exists=True, path_type=Path), required=True, help="Token ids [n, length].")
@click.option("--calibration", required=True, help="As `convert-attn --calibration` takes it.")
@click.option("--limit", default=16, show_default=True, help="At most this many windows.")
@json_option
def main(model: str, windows: Path, calibration: str, limit: int, json_file: Path | None) -> None:
    """Compare conversions of MODEL at several distances."""
    transformers.logging.set_verbosity_error()
    tokens = token_windows(windows, limit)
    original = load_model(resolve(model).folder)
    conversions: dict[str, dict[str, Any]] = {
        "mean, 1/2": {"to": "gqa", "cache_ratio": 0.5, "method": "mean"},
        "subspace, 1/2, weights only": {"to": "gqa", "cache_ratio": 0.5},
        "subspace, 1/2": {"to": "gqa", "cache_ratio": 0.5, "calibration": calibration},
        "subspace, 1/4": {"to": "gqa", "cache_ratio": 0.25, "calibration": calibration},
        "subspace MLA, 1/4": {"to": "mla", "cache_ratio": 0.25, "calibration": calibration},
    }
    table = []
    for name, options in conversions.items():
        with tempfile.TemporaryDirectory() as directory:
            made = convert(model, output=Path(directory) / "converted", **options)
            converted = load_model(made.output)
            for row in figures(original, converted, tokens):
                table.append({"conversion": name, **row})
                click.echo(json.dumps(table[-1]))
    if json_file is not None:
        json_file.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
