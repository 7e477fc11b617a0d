"""The figures of the decode benchmark as a Markdown table and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert_attn.eval.benchmarks.decode_contenders import CONTENDERS

_COLORS = {"mha": "tab:gray", "gqa": "tab:orange", "mla": "tab:blue", "deepseek_v3": "tab:red"}


def _step(spread: dict[str, Any]) -> str:
    quartiles = f"{spread['lower_quartile_ms']:.2f}..{spread['upper_quartile_ms']:.2f}"
    return f"{spread['median_ms']:.2f} ({quartiles})"


def markdown(table: list[dict[str, Any]]) -> str:
    """Give the rows as a Markdown table."""
    lines = [
        "| dtype | context, tokens | contender | block's cache, MB | block step, ms | block / read of its cache "
        "| block: x faster than mha, deepseek_v3 | model step, ms | model: x faster than mha, deepseek_v3 |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in table:
        faster = {
            part: ", ".join(f"{row[f'{part}_speedup_over_{other}']:.2f}" for other in ("mha", "deepseek_v3"))
            for part in ("block", "model")
        }
        lines.append(
            f"| {row['dtype']} | {row['context']} | {row['contender']} | {row['block_cache_bytes'] / 1e6:.2f} "
            f"| {_step(row['block'])} | {row['block_over_read']:.2f} | {faster['block']} "
            f"| {_step(row['model'])} | {faster['model']} |"
        )
    return "\n".join(lines)


def conditions(figures: dict[str, Any]) -> str:
    """Tell what the figures depend on, in one line."""
    return ", ".join(f"{key} {value}" for key, value in (figures["environment"] | figures["sizes"]).items())


def _short(tokens: float) -> str:
    """512, 2K, 32K."""
    return f"{tokens / 1024:g}K" if tokens >= 1024 else f"{tokens:g}"


def _draw_panel(panel: Any, rows: list[dict[str, Any]], part: str) -> None:
    """Medians with a band between the quartiles; for the block, dotted, a plain pass over its cache."""
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == name]
        contexts = [row["context"] for row in own]
        spread = {key: [row[part][key] for row in own] for key in own[0][part]}
        color = _COLORS[name]
        panel.plot(contexts, spread["median_ms"], marker="o", color=color, label=CONTENDERS[name])
        panel.fill_between(contexts, spread["lower_quartile_ms"], spread["upper_quartile_ms"], color=color, alpha=0.2)
        if part == "block":
            panel.plot(contexts, [row["read"]["median_ms"] for row in own], linestyle=":", color=color)
    if part == "block":
        panel.plot([], [], linestyle=":", color="black", label="a plain pass over its cache")


def _label_panel(panel: Any, contexts: list[int], part: str, dtype: str, layers: int) -> None:
    """Log-log axes whose ticks are plain numbers: contexts, and 1, 2, 5 (of many decades 1) of each decade of ms."""
    what = "attention block" if part == "block" else f"model of {layers} layer{'s' if layers > 1 else ''}"
    panel.set(xscale="log", yscale="log", title=f"{what}, {dtype}", xlabel="context, tokens", ylabel="decode step, ms")
    panel.set_xticks(contexts, [_short(tokens) for tokens in contexts])
    low, high = panel.get_ylim()
    digits = (1,) if high > 300 * low else (1, 2, 5)
    steps = [digit * 10.0**exponent for exponent in range(-5, 8) for digit in digits]
    steps = [step for step in steps if low <= step <= high]
    panel.set_yticks(steps, [f"{step:g}" for step in steps])
    panel.minorticks_off()
    panel.grid(visible=True, color="0.9")


def draw(figures: dict[str, Any], file: Path) -> None:
    """Step time (ms) against context (tokens): a line of panels for each dtype, block and model side by side."""
    from matplotlib.figure import Figure  # of an extra

    table = figures["rows"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in table))
    contexts = sorted({row["context"] for row in table})
    figure = Figure(figsize=(12, 4.5 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), 2, squeeze=False)
    for dtype, line in zip(dtypes, panels, strict=True):
        rows = [row for row in table if row["dtype"] == dtype]
        for part, panel in zip(("block", "model"), line, strict=True):
            _draw_panel(panel, rows, part)
            _label_panel(panel, contexts, part, dtype, figures["sizes"]["layers"])
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.suptitle(f"medians, quartiles shaded; {conditions(figures)}", fontsize="small", wrap=True)
    figure.savefig(file, dpi=150)
