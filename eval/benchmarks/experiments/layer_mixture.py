"""What does a gate over the layers gain? Perplexity after the same tokens of training, with the gate and without.

    python -m convert_attn.eval.benchmarks.experiments.layer_mixture sample:llama --data sample --tokens 200K

Trained are: the gate alone; all with the gate; all without one. Each is compared with its counterpart (the untrained
model, or "all without") token by token on the same held-out windows; the standard error is that of windows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
import torch
import transformers
from torch import Tensor

from convert_attn import convert, heal
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.option_types import Count, Words
from convert_attn.eval.benchmarks.common import json_option, load_model
from convert_attn.eval.measures.passages import documents_of, make_passages
from convert_attn.eval.measures.quality import FIGURES, batch_size, token_figures

RUNS: dict[str, tuple[Literal["gate", "all"], bool]] = {
    "gate alone": ("gate", True),
    "all, with the gate": ("all", True),
    "all, without a gate": ("all", False),
}


def losses(model: Any, windows: Tensor) -> Tensor:
    """Give the mean loss of each window in nats per token, [n]."""
    size = batch_size(windows.shape[1], model.config.vocab_size, "cpu")
    place = FIGURES.index("loss")
    return torch.cat([token_figures(model, part)[place].double().mean(1) for part in windows.split(size)])


def difference(found: Tensor, other: Tensor) -> dict[str, float]:
    """Give how much lower losses are than others of the same windows, and the standard error of that."""
    gain = other - found
    return {"gain": float(gain.mean()), "error": float(gain.std() / len(gain) ** 0.5)}


def trained(model: str, run: str, work: Path, options: dict[str, Any]) -> Any:
    """Convert and train one of RUNS, and load it."""
    learns, gated = RUNS[run]
    source = resolve(model).folder
    heads = transformers.AutoConfig.from_pretrained(source)
    to: dict[str, Any] = {"to": "gqa", "groups": heads.num_key_value_heads}  # which changes nothing
    made = convert(model, output=work / "made", **({"to": "mixture-of-layers"} if gated else to))
    found = heal(made.output, output=work / "trained", train=learns, stages=("uptrain",), cpu=True, **options)
    return load_model(found.output)


@click.command()
@click.argument("model")
@click.option("--data", required=True, help="As `convert-attn heal --data` takes it.")
@click.option("--tokens", type=Count(), required=True, help="To train on, for each run.")
@click.option("--text", help="Held-out text [default: the bundled one].")
@click.option("--window", default=256, show_default=True, help="Tokens.")
@click.option("--max-tokens", type=Count(), default="65536", show_default=True, help="Of the held-out text.")
@click.option("--lr", type=float, help="As `heal` has it.")
@click.option("--runs", type=Words(), default=",".join(name.replace(", ", " ") for name in RUNS), show_default=True)
@json_option
def main(
    *,
    model: str,
    data: str,
    tokens: int,
    text: str | None,
    window: int,
    max_tokens: int,
    lr: float | None,
    runs: Sequence[str],
    json_file: Path | None,
) -> None:
    """Train MODEL with and without a gate over its layers."""
    transformers.logging.set_verbosity_error()
    folder = resolve(model).folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    windows = make_passages(tokenizer, documents_of(text), window, max_tokens).windows
    options: dict[str, Any] = {"data": data, "tokens": tokens, "seq_len": window, "lr": lr}
    options["selection_tokens"] = min(8192, tokens // 8)
    found = {"untrained": losses(load_model(folder), windows)}
    rows: list[dict[str, Any]] = []
    asked = [name for name in reversed(RUNS) if name.replace(", ", " ") in runs]
    for name in asked:
        with tempfile.TemporaryDirectory() as directory:
            found[name] = losses(trained(model, name, Path(directory), options), windows)
        without = "all, without a gate" if name == "all, with the gate" and len(asked) > 1 else "untrained"
        row = {"run": name, "loss": float(found[name].mean()), "against": without}
        rows.append(row | difference(found[name], found[without]))
        click.echo(json.dumps(rows[-1]))
    if json_file is not None:
        about: dict[str, Any] = {
            "model": Path(model).name,
            "data": Path(data).name,
            "text": Path(text or "bundled").name,
        }
        about |= {"tokens": tokens, "window": window, "held_out_windows": len(windows), "lr": lr}
        kept = about | {"untrained": float(found["untrained"].mean()), "rows": rows}
        json_file.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
