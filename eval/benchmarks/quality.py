"""Every method at every cache size on one checkpoint: perplexity, KL to the original, top-1 agreement.

    python -m convert_attn.eval.benchmarks.quality sample:gpt2 sample:llama --calibration sample
    python -m convert_attn.eval.benchmarks.quality FOLDER --text validation.txt --calibration train.txt
    python -m convert_attn.eval.benchmarks.quality FOLDER --windows tokens.npy --calibration other.npy

Without --text the bundled held-out text is used. With --calibration every method that reads text is run on it, besides
the default from weights alone; fitting and selection windows are disjoint parts of it, and the text measured on is the
user's to keep apart. Prints a Markdown table; --json FILE keeps the numbers too, --png FILE draws them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from convert_attn import convert
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.inspection.inspection import inspect
from convert_attn.convert.methods import methods
from convert_attn.convert.samples import heldout_text
from convert_attn.eval.benchmarks.common import load_model, result_options, token_windows
from convert_attn.eval.measures.quality import measure, windows

SHARES = (0.5, 0.25, 0.125, 0.0625)
_LOWEST = 1e-4  # drawn: a conversion without loss has no place on a logarithmic axis


def _tokens(model: Path, text: Path | None, window_file: Path | None, length: int, limit: int | None) -> Tensor:
    if window_file is not None:
        return token_windows(window_file, limit)
    tokenizer = AutoTokenizer.from_pretrained(model)
    content = heldout_text() if text is None else text.read_text()
    return windows(tokenizer(content)["input_ids"], length, limit)


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One conversion and what it costs.

    Attributes:
        target: "gqa", "mqa" or "mla"; "original" for the source itself.
        share: of the source's cache, as asked for.
        method: with what was read besides the weights in brackets.
        cache: bytes per token.
    """

    model: str
    target: str
    share: float
    method: str
    cache: int
    perplexity: float
    kl: float | None = None
    top1: float | None = None


def variants(target: str, names: list[str], text: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and options of every way to convert for a target."""
    known = methods()
    for name in (name for name in names if target in known[name].targets):
        if known[name].calibration != "needed":
            yield name, {"method": name}
        if text is None or known[name].calibration == "none":
            continue
        if known[name].refit:
            yield f"{name} (text, no refit)", {"method": name, "calibration": text, "refit": False}
        yield f"{name} (text)", {"method": name, "calibration": text}


def targets(sizes: Geometry) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Target, share of the cache and options: heads where they divide, a latent at every share."""
    for share in SHARES:
        groups = share * sizes.num_kv_heads
        if groups == int(groups) and groups >= 1:
            yield ("mqa", share, {"to": "mqa"}) if groups == 1 else ("gqa", share, {"to": "gqa", "groups": int(groups)})
        yield "mla", share, {"to": "mla", "cache_ratio": share}


def rows(model: str, tokens: Tensor, names: list[str], text: str | None, count: int | None) -> Iterator[QualityRow]:
    """Give the original, then every target, share and method that fit."""
    original = load_model(resolve(model).folder)
    found, name = inspect(model), Path(model).name
    yield QualityRow(
        model=name,
        target="original",
        share=1.0,
        method="",
        cache=found.rows[0].bytes_per_token,
        perplexity=measure(original, tokens).perplexity,
    )
    for target, share, request in targets(found.sizes):
        for label, options in variants(target, names, text):
            if count is not None and "calibration" in options:
                options["calibration_tokens"] = count
            with tempfile.TemporaryDirectory() as directory:
                made = convert(model, output=Path(directory) / "converted", **request, **options)
                quality = measure(load_model(made.output), tokens, original)
            row = QualityRow(
                model=name,
                target=target,
                share=share,
                method=label,
                cache=made.plan.cache_bytes[1],
                perplexity=quality.perplexity,
                kl=quality.kl,
                top1=quality.top1,
            )
            click.echo(json.dumps(asdict(row)), err=True)
            yield row


def markdown(table: list[QualityRow]) -> str:
    """Give the rows as a Markdown table; the lowest KL at a model's cache share is bold."""
    best = {
        (row.model, row.target, row.share): min(
            other.kl
            for other in table
            if other.kl is not None and (other.model, other.target, other.share) == (row.model, row.target, row.share)
        )
        for row in table
        if row.kl is not None
    }
    lines = [
        "| model | target | cache | method | perplexity | KL, nats/token | top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        if row.kl is None or row.top1 is None:
            lines.append(f"| {row.model} | original | 100% | | {row.perplexity:.2f} | | |")
            continue
        kl = f"{round(row.kl, 4) + 0.0:.4f}"  # no minus in front of zero
        kl = f"**{kl}**" if row.kl == best[row.model, row.target, row.share] else kl
        cells = (row.model, row.target, f"{row.share:.1%}", row.method, f"{row.perplexity:.2f}", kl, f"{row.top1:.1%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(table: list[QualityRow], path: Path) -> None:
    """KL against the share of the cache, panels for models and kinds of cache, a line for each method."""
    from matplotlib.figure import Figure  # of an extra

    models = list(dict.fromkeys(row.model for row in table))
    figure = Figure(figsize=(7 * len(models), 10))
    panels = figure.subplots(2, len(models), sharey=True, squeeze=False)
    for column, model in enumerate(models):
        for panel, name in zip(panels[:, column], ("GQA and MQA", "MLA"), strict=True):
            chosen = [row for row in table if row.model == model and row.kl is not None]
            chosen = [row for row in chosen if (row.target == "mla") == (name == "MLA")]
            for method in dict.fromkeys(row.method for row in chosen):
                line = sorted((row.share, max(row.kl or 0.0, _LOWEST)) for row in chosen if row.method == method)
                panel.plot(*zip(*line, strict=True), "-o", label=method, markersize=4)
            panel.set(xscale="log", yscale="log", title=f"{model}, {name}")
            panel.set(xlabel="share of the original cache", ylabel="KL(original || converted), nats per token")
            panel.set_xticks(SHARES, [f"1/{round(1 / share)}" for share in SHARES])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)
    figure.suptitle(f"lower is better; what is below {_LOWEST:g} is drawn there", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


@click.command()
@click.argument("models", nargs=-1)
@click.option("--text", type=click.Path(exists=True, path_type=Path), help="Plain text to measure on.")
@click.option("--windows", "window_file", type=click.Path(exists=True, path_type=Path), help="Token ids [n, length].")
@click.option("--method", "names", multiple=True, help="Only these methods.")
@click.option("--calibration", help="Text for the methods that read some, as `convert-attn --calibration` takes it.")
@click.option("--calibration-tokens", type=int, help="At most this many of it.")
@click.option("--length", default=512, show_default=True, help="Window in tokens.")
@click.option("--limit", type=int, help="At most this many windows.")
@result_options("KL against cache")
def main(
    *,
    models: tuple[str, ...],
    text: Path | None,
    window_file: Path | None,
    names: tuple[str, ...],
    calibration: str | None,
    calibration_tokens: int | None,
    length: int,
    limit: int | None,
    earlier: tuple[Path, ...],
    json_file: Path | None,
    png: Path | None,
) -> None:
    """Measure every method on MODELS."""
    transformers.logging.set_verbosity_error()
    table = [QualityRow(**row) for path in earlier for row in json.loads(path.read_text())]
    for model in models:
        tokens = _tokens(resolve(model).folder, text, window_file, length, limit)
        table += rows(model, tokens, list(names or methods()), calibration, calibration_tokens)
    click.echo(markdown(table))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in table], indent=2) + "\n")
    if png is not None:
        draw(table, png)


if __name__ == "__main__":
    main()
