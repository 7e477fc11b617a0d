"""What the benchmark on a real model prints and draws of its rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from convert_attn.convert.errors import UsageError
from convert_attn.eval.benchmarks.common import load_model
from convert_attn.eval.benchmarks.real_rows import AUTO, DTYPES, HEALED, IN_DOMAIN, MLP, NONE, SELF, RealRow

PROMPTS = (
    "The history of the city begins with",
    "Water boils at a lower temperature in the mountains because",
    "She opened the old wooden box and found",
)
BEGIN, END = "<!-- real model: begin -->", "<!-- real model: end -->"
_TEXT = {
    NONE: "weights alone (`none`)",
    AUTO: "the package's text (`auto`, the default)",
    SELF: "text that it wrote itself (`self`)",
    IN_DOMAIN: "{tokens:,} tokens of such text",
    MLP: "{tokens:,} tokens of such text, `--refit mlp`",
    HEALED: "{tokens:,} tokens of such text, then healed",
}
_LOWEST = 1e-4  # drawn: a conversion without loss has no place on a logarithmic axis


def markdown(original: Mapping[str, Any], rows: Sequence[RealRow], targets: Mapping[str, float]) -> str:
    """Write the original and the rows as a Markdown table, and below it what became of the targets.

    Args:
        original: `class_name`, `cache` in bytes per token, and `figures` as in `RealRow`.
        targets: row name -> the highest perplexity, in float32, that meets it.
    """
    quality = ["perplexity", "KL", "perplexity, stored", "KL, stored"]
    header = ["row", "cache", "class", *quality, "time", "forwards", "peak"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    cells = ["original", "100.0%", original["class_name"], *_figures(original["figures"]), "", "", ""]
    lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        if row.failed is not None:
            lines.append(f"| {row.name} | failed: {row.failed.replace('|', '/')} |{' |' * (len(header) - 2)}")
            continue
        forwards = "" if row.forward_ratio is None else f"{row.forward_ratio:.1f}x"
        cells = [row.name, f"{row.cache_share or 0:.1%}", row.class_name or "", *_figures(row.figures)]
        cells += ["" if row.seconds is None else f"{row.seconds:.0f} s", forwards]
        cells += ["" if row.peak_mb is None else f"{row.peak_mb:.0f} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    said = verdicts(rows, targets)
    return "\n".join([*lines, *([""] if said else []), *said])


def _figures(figures: Mapping[str, Any]) -> list[str]:
    """Perplexity and KL of each dtype with their errors."""
    found = []
    for dtype in DTYPES:
        for name, digits in (("perplexity", 2), ("kl", 4)):
            value = figures[dtype].get(name)
            found.append("" if value is None else _with_error(value["mean"], value["error"], digits))
    return found


def _with_error(mean: float, error: float | None, digits: int) -> str:
    mean = round(mean, digits) + 0.0  # no minus in front of zero
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def verdicts(rows: Sequence[RealRow], targets: Mapping[str, float]) -> list[str]:
    """Say of each target whether it is met or missed, and by how much.

    Args:
        targets: as in `markdown`.
    """
    known = {row.name: row for row in rows}
    said = []
    for name, bound in targets.items():
        row = known.get(name)
        if row is None or row.failed is not None:
            said.append(f"- {name}: at most {bound:g} is missed: {'not run' if row is None else 'it failed'}")
            continue
        found = row.figures["float32"]["perplexity"]["mean"] or 0.0
        outcome = "met" if found <= bound else "missed"
        said.append(f"- {name}: at most {bound:g} is {outcome} by {abs(found - bound):.2f} ({found / bound - 1:+.1%})")
    return said


def summary(original: Mapping[str, Any], rows: Sequence[RealRow]) -> str:
    """Write what people ask of the rows as a Markdown table: by cache, the largest first, then by perplexity.

    Args:
        original: as in `real_report.markdown`.
    """
    header = ["cache", "method", "fitted on", "perplexity", "KL, nats per token", "stored", "time", "peak memory"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    exact, stored = (original["figures"][dtype]["perplexity"]["mean"] for dtype in ("float32", "stored"))
    lines.append(f"| original | | | {exact:.2f} | | {stored:.2f} | | |")
    made = [row for row in rows if row.failed is None]
    lines += [_line(row) for row in sorted(made, key=lambda row: (-(row.cache_share or 0), _perplexity(row)))]
    return "\n".join(lines)


def _perplexity(row: RealRow, dtype: str = "float32") -> float:
    return row.figures[dtype]["perplexity"]["mean"] or 0.0


def _line(row: RealRow) -> str:
    typed = " ".join(row.command)
    _, method, text = row.name.split(":") if ":" in row.name else ("", "", "")
    target = re.search(r"--to (\w+)", typed)
    cache = f"{target[1].upper() if target else row.class_name}, {row.cache_share or 0:.0%}"
    healed = re.search(r"\bheal\b.* --tokens (\S+)", typed)
    fitted = _TEXT[text].format(tokens=row.tokens) if text else f"`{row.name}`"
    if healed and not text:
        fitted = f"{row.tokens:,} tokens of text, then healed on {healed[1]} tokens"
    kl = row.figures["float32"]["kl"]
    time = "" if row.seconds is None else f"{row.seconds:,.0f} s"
    peak = "" if row.peak_mb is None else f"{row.peak_mb / 1000:.1f} GB"
    figures = [
        _number(_perplexity(row)),
        f"{kl['mean']:.3f} ± {kl['error'] or 0:.3f}",
        _number(_perplexity(row, "stored")),
    ]
    return f"| {' | '.join([cache, f'`{method}`' if method else '', fitted, *figures, time, peak])} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def write_between_marks(file: Path, table: str) -> None:
    """Put a table between the marks of a file; what is around them stays.

    Raises:
        UsageError: the file has no such marks.
    """
    text = file.read_text(encoding="utf-8")
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise UsageError(f"'{file.name}' has no place for the table: put {BEGIN} and {END} where it belongs")
    file.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def draw(original: Mapping[str, Any], rows: Sequence[RealRow], path: Path) -> None:
    """Draw perplexity and KL in float32 against the cache's share; latents as lines, shared heads as crosses.

    Args:
        original: as in `markdown`.
    """
    from matplotlib import colormaps  # of an extra
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = [*colours[::2], *colours[1::2]]  # the strong ones first
    made = [row for row in rows if row.failed is None]
    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("perplexity", "kl"), ("perplexity", "KL to the original, nats per token"), strict=True
    ):
        for number, way in enumerate(dict.fromkeys(map(_way, made))):
            here = [row for row in made if _way(row) == way]
            points = {
                kind: sorted(
                    (100 * (row.cache_share or 0), max(row.figures["float32"][name]["mean"] or 0.0, _LOWEST))
                    for row in here
                    if row.name.startswith("mla") == (kind == "latent")
                )
                for kind in ("latent", "heads")
            }
            style = {"color": colours[number % 20], "linestyle": ("-", "--", ":")[number // 20 % 3]}
            axes.plot(*_columns(points["latent"]), marker="o", markersize=4, label=way, **style)
            axes.plot(*_columns(points["heads"]), marker="X", markersize=8, **style)
        if name == "perplexity":
            level = original["figures"]["float32"]["perplexity"]["mean"]
            axes.axhline(level, color="#666c75", linestyle=":", label="original")
        axes.set(xlabel="share of the original cache, %", ylabel=label, yscale="log")
        for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatted(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))
        axes.grid(visible=True, alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.suptitle("dots: MLA, crosses: MQA; lower is better", fontsize=10)
    figure.savefig(path, dpi=130)


def _way(row: RealRow) -> str:
    """What rows of one line have in common: method and calibration, or the name of a folder."""
    return row.name.partition(":")[2] or row.name


def _columns(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    points = list(points)
    return [x for x, _ in points], [y for _, y in points]


@torch.inference_mode()
def completions(folders: Sequence[Path], prompts: Sequence[str], tokens: int) -> str:
    """Let checkpoints go on with prompts, the likeliest token each time, and write it down as Markdown.

    Args:
        folders: each with its tokenizer; the first is the original.
        tokens: at most so many each.
    """
    said: dict[str, list[tuple[str, str]]] = {prompt: [] for prompt in prompts}
    for number, folder in enumerate(folders):
        model, tokenizer = load_model(folder), AutoTokenizer.from_pretrained(folder)
        name = "original" if number == 0 else folder.name
        for prompt, answers in said.items():
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, num_beams=1
            )
            text = str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
            answers.append((name, " ".join(text.split())))
    parts = []
    for prompt, answers in said.items():
        parts += [f"**{prompt}** ...", "", *(f"- {name}: {text}" for name, text in answers), ""]
    return "\n".join(parts).rstrip()
