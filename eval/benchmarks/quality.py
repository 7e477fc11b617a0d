"""Every method at every cache size on one checkpoint: perplexity, KL to the original, top-1 agreement.

    python -m convert_attn.eval.benchmarks.quality sample:gpt2 sample:llama
    python -m convert_attn.eval.benchmarks.quality FOLDER --text validation.txt
    python -m convert_attn.eval.benchmarks.quality FOLDER --windows tokens.npy

Without --text the bundled held-out text is used. Prints a Markdown table; --json FILE keeps the numbers too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert_attn import convert
from convert_attn.convert.hub import resolve
from convert_attn.convert.inspection import inspect
from convert_attn.convert.methods import methods
from convert_attn.convert.samples import heldout_text
from convert_attn.eval.quality import measure, windows


def _tokens(model: Path, text: Path | None, window_file: Path | None, length: int, limit: int | None) -> Tensor:
    if window_file is not None:
        return torch.from_numpy(np.load(window_file).astype(np.int64))[:limit]
    tokenizer = AutoTokenizer.from_pretrained(model)
    content = heldout_text() if text is None else text.read_text()
    return windows(tokenizer(content)["input_ids"], length, limit)


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _request(form: str, share: float) -> dict[str, Any]:
    """The options of `convert` for a row of `inspect`."""
    if form.startswith("MLA"):
        return {"to": "mla", "cache_ratio": share}
    return {"to": "mqa"} if form == "MQA" else {"to": "gqa", "groups": int(form.removeprefix("GQA-"))}


def rows(model: str, tokens: Tensor, names: list[str]) -> list[dict[str, Any]]:
    """One row for the original and one for every form x method that serves it, in the order of `inspect`."""
    found, folder = inspect(model), resolve(model).folder
    original = _load(folder)
    reference = measure(original, tokens)
    table: list[dict[str, Any]] = [
        {"model": model, "form": "original", "method": "", "share": 1.0, "perplexity": reference.perplexity}
    ]
    for row in found.rows[1:]:
        share = row.bytes_per_token / found.rows[0].bytes_per_token
        request = _request(row.name, share)
        for name in (name for name in names if request["to"] in methods()[name].targets):
            with tempfile.TemporaryDirectory() as directory:
                output = Path(directory) / "converted"
                convert(model, method=name, output=output, **request)
                quality = measure(_load(output), tokens, original)
            figures = {"perplexity": quality.perplexity, "kl": quality.kl, "top1": quality.top1}
            table.append({"model": model, "form": row.name, "method": name, "share": share, **figures})
            click.echo(f"{model} {row.name} {name}: {figures}", err=True)
    return table


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | form | cache | method | perplexity | KL, nats/token | top-1 |", "|---|---|---|---|---|---|---|"]
    for row in table:
        kl, top1 = ("", "") if "kl" not in row else (f"{row['kl']:.4f}", f"{row['top1']:.1%}")
        model = Path(row["model"]).name
        quality = f"{row['method']} | {row['perplexity']:.2f} | {kl} | {top1}"
        lines.append(f"| {model} | {row['form']} | {row['share']:.1%} | {quality} |")
    return "\n".join(lines)


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--text", type=click.Path(exists=True, path_type=Path), help="Plain text to measure on.")
@click.option("--windows", "window_file", type=click.Path(exists=True, path_type=Path), help="Token ids [n, length].")
@click.option("--method", "names", multiple=True, help="Only these methods.")
@click.option("--length", default=512, show_default=True, help="Window in tokens.")
@click.option("--limit", type=int, help="At most this many windows.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep the numbers here.")
def main(
    models: tuple[str, ...],
    text: Path | None,
    window_file: Path | None,
    names: tuple[str, ...],
    length: int,
    limit: int | None,
    json_file: Path | None,
) -> None:
    """Measure every method on MODELS."""
    transformers.logging.set_verbosity_error()
    table = []
    for model in models:
        tokens = _tokens(resolve(model).folder, text, window_file, length, limit)
        table += rows(model, tokens, list(names or methods()))
    click.echo(markdown(table))
    if json_file is not None:
        json_file.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
