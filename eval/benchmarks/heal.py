"""What training wins back, and how many tokens it takes: one-shot conversion healed, against plain uptraining.

    python -m convert_attn.eval.benchmarks.heal FOLDER --data train.txt --windows test.npy --calibration fit.npy

Ways to the same shape and cache, on the same training text:

    ours      converted by the default method on calibration text, then `heal` (layerwise, distill)
    ours+lm   the same with --lm-weight 10 --layer-share 0.1: what still learns from text gets beyond its original
    uptrain   heads averaged (`mean`; MLA: plain `svd`), then trained on the text alone (Ainslie et al. 2023, sec. 2)

Each budget is a run of its own with its own learning-rate schedule. Perplexity and KL to the original are measured on
--windows, which neither way sees: training text that is there too is left out. The last columns say how many times the
tokens of `ours` uptraining needs for the same perplexity, or KL: more than its largest budget that does not get there,
at most its smallest that does. --lm-lr gives the ways that learn from the text itself rates of their own, each a run:
what suits them changes with the budget. What the text teaches a model anyway, `--target mha --way uptrain` tells: the
original, trained.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import Tensor

from convert_attn import convert, heal
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.option_types import Count, Numbers, short_count
from convert_attn.eval.benchmarks.common import load_model, result_options, token_windows
from convert_attn.eval.measures.quality import measure

TARGETS: dict[str, dict[str, Any]] = {
    "mha": {"to": "gqa", "cache_ratio": 1.0},  # the original itself: what the text alone teaches
    "gqa 1/2": {"to": "gqa", "cache_ratio": 0.5},
    "gqa 1/4": {"to": "gqa", "cache_ratio": 0.25},
    "mqa": {"to": "mqa"},
    "mla 1/4": {"to": "mla", "cache_ratio": 0.25},
    "mla 1/8": {"to": "mla", "cache_ratio": 0.125},
    "mla 1/16": {"to": "mla", "cache_ratio": 0.0625},
}
_ASKED = ("gqa 1/4", "mqa", "mla 1/8", "mla 1/16")
OURS, OURS_LM, UPTRAIN = "ours", "ours+lm", "uptrain"
WAYS: dict[str, dict[str, Any]] = {
    OURS: {},
    OURS_LM: {"lm_weight": 10.0, "layer_share": 0.1},
    UPTRAIN: {"stages": ("uptrain",)},
}
_COLOURS = ("#0072b2", "#009e73", "#d55e00")  # of the ways
_LABELS = {"perplexity": "perplexity", "kl": "KL to the original, nats/token"}


@dataclass(frozen=True, kw_only=True)
class HealRow:
    """One run.

    Attributes:
        tokens: trained on; 0: as converted.
        lr: highest learning rate, None for the default.
    """

    model: str
    target: str
    way: str
    tokens: int
    perplexity: float
    kl: float
    lr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs on a model share."""

    model: str
    original: Any
    windows: Tensor
    calibration: str
    options: dict[str, Any]

    def measured(self, folder: Path, target: str, way: str, tokens: int, lr: float | None = None) -> HealRow:
        """Give a checkpoint on the test windows."""
        model = load_model(folder)
        found = measure(model, self.windows, self.original)
        row = HealRow(
            model=Path(self.model).name,
            target=target,
            way=way,
            tokens=tokens,
            perplexity=found.perplexity,
            kl=float(found.kl or 0.0),
            lr=lr,
        )
        click.echo(json.dumps(asdict(row)), err=True)
        return row

    def start(self, target: str, way: str, place: Path) -> Path:
        """Give the conversion that a way begins with; ours are the same."""
        folder = place / ("plain" if way == UPTRAIN else "best")
        if not folder.exists():
            request = TARGETS[target]
            plain: dict[str, Any] = {"method": "svd" if request["to"] == "mla" else "mean"}
            convert(
                self.model,
                output=folder,
                **request,
                **(plain if way == UPTRAIN else {"calibration": self.calibration}),
            )
        return folder

    def way(
        self, target: str, way: str, budgets: list[int], rates: list[float | None], place: Path
    ) -> Iterator[HealRow]:
        """Give the conversion, then a run for each budget and rate."""
        start = self.start(target, way, place)
        yield self.measured(start, target, way, 0)
        for number, (budget, rate) in enumerate((b, r) for b in budgets for r in rates):
            done = heal(
                start,
                teacher=self.model,
                tokens=budget,
                output=place / f"{way}-{number}",
                lr=rate,
                **WAYS[way],
                **self.options,
            )
            yield self.measured(done.output, target, way, budget, rate)


def needed(row: HealRow, rows: list[HealRow], figure: str) -> str:
    """Tell what uptraining needs for as good a figure as one of our rows, as far as its budgets tell.

    Args:
        figure: "perplexity" or "kl".
    """
    if row.way == UPTRAIN:
        return ""
    others = [r for r in rows if (r.model, r.target, r.way) == (row.model, row.target, UPTRAIN)]
    if not others:
        return "not run"
    enough = [r.tokens for r in others if getattr(r, figure) <= getattr(row, figure)]
    short = [r.tokens for r in others if not enough or r.tokens < min(enough)]
    if not enough:
        return f"more than {_share(max(short), row.tokens)}"
    if not min(enough):
        return "none"
    if not any(short):
        return f"at most {_share(min(enough), row.tokens)}"
    return f"{_share(max(short), row.tokens)} to {_share(min(enough), row.tokens)}"


def _share(tokens: int, ours: int) -> str:
    """As a multiple of ours."""
    return f"{tokens / ours:.1f}x" if ours else f"{tokens:,} tokens"


def markdown(rows: list[HealRow], originals: dict[str, float]) -> str:
    """Give all rows as a Markdown table; the last two columns: tokens that uptraining needs for the same."""
    lines = [
        "| model | target | way | tokens | perplexity | over original | KL, nats/token | same perplexity | same KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "" if row.lr is None else f" (lr {row.lr:g})"
        over = row.perplexity / originals[row.model] - 1
        cells = (row.model, row.target, row.way + rate, f"{row.tokens:,}", f"{row.perplexity:.2f}", f"{over:+.1%}")
        times = " | ".join(needed(row, rows, figure) for figure in ("perplexity", "kl"))
        lines.append(f"| {' | '.join(cells)} | {row.kl:.4f} | {times} |")
    named = ", ".join(f"{name} {value:.2f}" for name, value in originals.items())
    return "\n".join([f"Perplexity of the originals: {named}.", "", *lines])


def joined(rows: list[HealRow]) -> list[HealRow]:
    """Each once, in the order of models, targets, ways and tokens: runs that are kept apart begin with the same row."""
    models, targets, ways = list(dict.fromkeys(row.model for row in rows)), [*TARGETS], [*WAYS]

    def place(row: HealRow) -> tuple[int, int, int, int, float]:
        return models.index(row.model), targets.index(row.target), ways.index(row.way), row.tokens, row.lr or 0.0

    first = {place(row): row for row in reversed(rows)}
    return [first[key] for key in sorted(first)]


def draw(rows: list[HealRow], originals: dict[str, float], path: Path) -> None:
    """Perplexity and KL against tokens: a column for each target, two lines of panels for each model."""
    from matplotlib.figure import Figure  # of an extra

    models, targets = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("model", "target"))
    targets.sort(key=[*TARGETS].index)
    budgets = sorted({row.tokens for row in rows})
    figure = Figure(figsize=(3.4 * len(targets), 5.6 * len(models)), layout="constrained")
    panels = figure.subplots(2 * len(models), len(targets), squeeze=False)
    for number, (model, name) in enumerate((m, n) for m in models for n in _LABELS):
        for axes, target in zip(panels[number], targets, strict=True):
            here = [row for row in rows if (row.model, row.target) == (model, target)]
            if not here:
                axes.set_axis_off()
                continue
            _panel(axes, here, name, budgets, originals[model])
            axes.set_xticks([*range(len(budgets))], [short_count(budget) for budget in budgets])
            axes.set_xlim(-0.3, len(budgets) - 0.7)
            axes.set(title=f"{model}, {target}", ylabel=_LABELS[name])
            axes.grid(visible=True, alpha=0.3)
            axes.legend(fontsize=7)
    figure.supxlabel("tokens trained on", fontsize=10)
    figure.savefig(path, dpi=110)


def _panel(axes: Any, rows: list[HealRow], name: str, budgets: list[int], original: float) -> None:
    """The lines of one figure; a start that is far above all else is written where its line comes in."""
    for way, colour in zip(WAYS, _COLOURS, strict=True):
        best: dict[int, float] = {}
        for row in (row for row in rows if row.way == way and getattr(row, name) > 0):  # a KL of 0 has no logarithm
            best[row.tokens] = min(getattr(row, name), best.get(row.tokens, math.inf))
        if best:
            axes.plot([budgets.index(tokens) for tokens in best], [*best.values()], "o-", color=colour, label=way)
    if name == "kl":
        axes.set_yscale("log")
        return
    axes.axhline(original, color="#666c75", linestyle=":", label="original")
    far = max(row.perplexity for row in rows)
    near = [original, *(row.perplexity for row in rows if row.tokens or row.way != UPTRAIN)]
    room = 0.15 * (max(near) - min(near)) or 0.05 * original
    if far > max(near) + room:
        axes.set_ylim(min(near) - room, max(near) + room)
        note = {"fontsize": 7, "va": "top", "transform": axes.transAxes}
        axes.text(0.02, 0.97, f"from {far:.0f}", color=_COLOURS[-1], **note)


@click.command()
@click.argument("models", nargs=-1)
@click.option("--data", multiple=True, help="Text to train on, as `heal --data` takes it.")
@click.option("--data-weights", type=Numbers("3,1"), help="Shares of several, as `heal` takes them.")
@click.option("--windows", "window_file", type=click.Path(exists=True, path_type=Path), help="Test ids.")
@click.option("--calibration", help="Text for the one-shot conversion.")
@click.option("--target", "targets", type=click.Choice([*TARGETS]), multiple=True, default=_ASKED, show_default=True)
@click.option("--budget", "budgets", type=Count(), multiple=True, default=("250K", "1M", "4M"), show_default=True)
@click.option("--way", "ways", type=click.Choice([*WAYS]), multiple=True, default=[*WAYS])
@click.option("--lm-lr", type=float, multiple=True, help="Rates for ours+lm and uptrain [default: as ours].")
@click.option("--mixed-precision", default="no", show_default=True)
@click.option("--selection-tokens", type=Count(), default="8K", show_default=True)
@click.option("--limit", type=int, help="At most this many test windows.")
@result_options("perplexity against tokens")
def main(
    *,
    models: tuple[str, ...],
    data: tuple[str, ...],
    data_weights: tuple[int, ...] | None,
    window_file: Path | None,
    calibration: str | None,
    targets: tuple[str, ...],
    budgets: tuple[int, ...],
    ways: tuple[str, ...],
    lm_lr: tuple[float, ...],
    mixed_precision: str,
    selection_tokens: int,
    limit: int | None,
    earlier: tuple[Path, ...],
    json_file: Path | None,
    png: Path | None,
) -> None:
    """Heal conversions of MODELS and compare with uptraining."""
    transformers.logging.set_verbosity_error()
    if models and not (data and window_file and calibration):
        raise click.UsageError("MODELS need --data, --windows and --calibration")
    windows = torch.zeros(0) if window_file is None else token_windows(window_file, limit)
    options = {
        "data": data,
        "data_weights": data_weights,
        "exclude": window_file,
        "mixed_precision": mixed_precision,
        "selection_tokens": selection_tokens,
    }
    rows: list[HealRow] = []
    originals: dict[str, float] = {}
    for path in earlier:
        kept = json.loads(path.read_text())
        originals |= kept["originals"]
        rows += [HealRow(**row) for row in kept["rows"]]
    for model in models:
        original = load_model(resolve(model).folder)
        originals[Path(model).name] = measure(original, windows).perplexity
        setting = Setting(
            model=model, original=original, windows=windows, calibration=str(calibration), options=options
        )
        for target in targets:
            for way in ways:
                rates: list[float | None] = [*lm_lr] if way != OURS and lm_lr else [None]
                with tempfile.TemporaryDirectory() as place:
                    rows += setting.way(target, way, [*budgets], rates, Path(place))
    rows = joined(rows)
    click.echo(markdown(rows, originals))
    if json_file is not None:
        found = {"originals": originals, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(found, indent=2) + "\n")
    if png is not None:
        draw(rows, originals, png)


if __name__ == "__main__":
    main()
