"""The figures of decoding over fewer heads as a page of Markdown, targets met or missed, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLORS = {"stock": "tab:gray", "packed": "tab:blue", "plain": "tab:orange", "triton": "tab:green"}


def _time(spread: dict[str, Any]) -> str:
    return f"{spread['median_ms']:.2f} ({spread['lower_quartile_ms']:.2f}..{spread['upper_quartile_ms']:.2f})"


def _verdict(row: dict[str, Any]) -> str:
    """Met or missed, and what share of the allowed time was taken."""
    if "allowed_ms" not in row:
        return ""
    taken = row["step"]["median_ms"] / row["allowed_ms"]
    return f"{'met' if row['met'] else 'missed'}: {taken:.2f} of {row['allowed_ms']:.2f} ms"


def attention_table(rows: list[dict[str, Any]]) -> str:
    """Attention alone: a line for each form and function."""
    lines = [
        "| dtype | context | batch | form | function | cache, MB (share) | step, ms | GB/s | of MHA stock | target |",
        "|---|--:|--:|---|---|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        whole = next(
            other["step"]["median_ms"]
            for other in rows
            if (other["form"], other["function"]) == ("MHA", "stock")
            and all(other[key] == row[key] for key in ("dtype", "context", "batch"))
        )
        lines.append(
            f"| {row['dtype']} | {row['context']} | {row['batch']} | {row['form']} | {row['function']} "
            f"| {row['cache_bytes'] / 1e6:.1f} ({row['share']:.1%}) | {_time(row['step'])} "
            f"| {row['gigabytes_per_second']:.1f} | {row['step']['median_ms'] / whole:.3f} | {_verdict(row)} |"
        )
    return "\n".join(lines)


def arithmetic_table(rows: list[dict[str, Any]]) -> str:
    """Plain products: a line for each form."""
    lines = ["| dtype | context | products of | ms | GFLOP/s | floor, ms |", "|---|--:|---|--:|--:|--:|"]
    lines += [
        f"| {row['dtype']} | {row['context']} | {row['form']} | {_time(row['step'])} | {row['gigaflops']:.1f} "
        f"| {row['floor_ms']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def model_table(rows: list[dict[str, Any]], what: str) -> str:
    """Whole models: a line for each context and model."""
    lines = [f"| dtype | {what} | model | ms | target |", "|---|--:|---|--:|---|"]
    lines += [
        f"| {row['dtype']} | {row['context']} | {row['model']} | {_time(row['step'])} | {_verdict(row)} |"
        for row in rows
    ]
    return "\n".join(lines)


def conditions(figures: dict[str, Any]) -> str:
    """Tell what the figures depend on, in one line."""
    return ", ".join(f"{key} {value}" for key, value in (figures["environment"] | figures["shape"]).items())


def page(figures: dict[str, Any]) -> str:
    """The whole page."""
    parts = [
        "# Decoding over fewer K/V heads and over a latent",
        "    python -m convert_attn.eval.benchmarks.heads --json FILE --png FILE --page FILE",
        f"Medians and quartiles of calls that take turns in one run; {conditions(figures)}.",
        *([figures["note"]] if figures["note"] else []),
        "Stock is transformers' own SDPA function, packed is `convert_attn_packed`, and for MLA the kernel that the "
        "modeling file takes. Random weights and caches. The target of attention alone is 1.5 times the share that a "
        "form's cache has of MHA's bytes, of the time of MHA by the stock function.",
        "## Attention alone, one new token",
        attention_table(figures["attention"]),
    ]
    if figures.get("arithmetic"):
        parts += [
            "## The arithmetic alone",
            "The two products of MQA and of the latent without a softmax, and a square product of 1,024. The floor is "
            "the time that a form's products take at the square one's speed.",
            arithmetic_table(figures["arithmetic"]),
        ]
    if figures["steps"]:
        parts += [
            f"## Decode step of a whole model of {figures['layers']} layer; target: not slower than the original",
            model_table(figures["steps"], "context"),
        ]
    if figures["prefills"]:
        parts += ["## Prefill; target: within 1.1 times the original", model_table(figures["prefills"], "tokens")]
    return "\n\n".join(parts) + "\n"


def draw(figures: dict[str, Any], file: Path) -> None:
    """A panel of bars for each dtype, context and batch: attention alone, with the times that the target allows."""
    from matplotlib.figure import Figure  # of an extra

    rows = figures["attention"]
    settings = list(dict.fromkeys((row["dtype"], row["context"], row["batch"]) for row in rows))
    figure = Figure(figsize=(5.5 * min(len(settings), 3), 4.5 * -(-len(settings) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(settings) // 3), min(len(settings), 3), squeeze=False).flat
    for panel, setting in zip(panels, settings, strict=False):
        own = [row for row in rows if (row["dtype"], row["context"], row["batch"]) == setting]
        _draw_panel(panel, own)
        panel.set_title("{}, {} tokens, batch {}".format(*setting))
    figure.suptitle(f"medians, quartiles as lines; {conditions(figures)}", fontsize="x-small", wrap=True)
    figure.savefig(file, dpi=150)


def _draw_panel(panel: Any, rows: list[dict[str, Any]]) -> None:
    places = range(len(rows))
    spreads = [row["step"] for row in rows]
    medians = [spread["median_ms"] for spread in spreads]
    around = [
        [spread["median_ms"] - spread["lower_quartile_ms"] for spread in spreads],
        [spread["upper_quartile_ms"] - spread["median_ms"] for spread in spreads],
    ]
    panel.bar(places, medians, yerr=around, color=[_COLORS[row["function"]] for row in rows])
    for place, row in zip(places, rows, strict=True):
        label = f"{row['step']['median_ms']:.3g}"
        panel.annotate(label, (place, row["step"]["upper_quartile_ms"]), ha="center", va="bottom", fontsize="small")
        if "allowed_ms" in row:
            panel.hlines(row["allowed_ms"], place - 0.45, place + 0.45, color="tab:red")
    panel.plot([], [], color="tab:red", label="target")
    panel.set_xticks(list(places), [f"{row['form']}\n{row['function']}" for row in rows], fontsize="x-small")
    low = min([*medians, *(row["allowed_ms"] for row in rows if "allowed_ms" in row)])
    panel.set(yscale="log", ylabel="attention of one new token, ms", ylim=(low / 2, 2 * max(medians)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.grid(visible=True, axis="y", color="0.9")
    panel.set_axisbelow(True)
    panel.legend()
