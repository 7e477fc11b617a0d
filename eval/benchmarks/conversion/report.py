"""The figures of the conversion benchmark as a Markdown table, targets met or missed, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COPY, START, MEAN, SUBSPACE, LATENT, MERGEKIT = "cp -r", "start-up", "mean", "subspace", "mla", "mergekit"
SUBSPACE_2, LATENT_2, DURABLE = f"{SUBSPACE}, --jobs 2", f"{LATENT}, --jobs 2", f"{COPY}, sync"
HELP, GLANCE, INSPECT = "--help", "inspect, first line", "inspect, all"
_NEAR_COPY, _OVER_MERGEKIT = 1.5, 3.0  # times
_LARGE, _LARGER = "layer 4096, 32 heads over 32: GQA-8", "layer 8192, 64 heads over 8: GQA-4"
_SECONDS = {
    SUBSPACE: 20.0,
    SUBSPACE_2: 20.0,
    LATENT: 30.0,
    LATENT_2: 30.0,
    HELP: 0.3,
    GLANCE: 1.0,
    INSPECT: 1.0,
    _LARGE: 60.0,
}
_DRAWN = 0.5  # seconds: bars of less are not seen
_BYTES = {_LARGER: 24e9}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Give the rows as a Markdown table."""
    lines = [
        "| | seconds (least to most) | processor seconds | peak memory, GB | times cp |",
        "|---|--:|--:|--:|--:|",
    ]
    copied = next((row["seconds"] for row in rows if row["name"] == COPY), None)
    for row in rows:
        times = "-" if copied is None else f"{row['seconds'] / copied:.2f}"
        lines.append(
            f"| {row['name']} | {row['seconds']:.2f} ({row['least']:.2f} to {row['most']:.2f}) "
            f"| {row['processor_seconds']:.2f} | {row['peak_bytes'] / 1e9:.2f} | {times} |"
        )
    return "\n".join(lines)


def targets(rows: list[dict[str, Any]]) -> list[str]:
    """Tell of each target whether it is met, and by how much it is missed; only of what was run."""
    seconds = {row["name"]: row["seconds"] for row in rows}
    wanted: list[tuple[str, float, float]] = []
    if {COPY, START, MEAN} <= seconds.keys():
        limit = seconds[START] + _NEAR_COPY * seconds[COPY]
        wanted.append((f"{MEAN} within start-up and {_NEAR_COPY:g} times {COPY}", seconds[MEAN], limit))
    if {MERGEKIT, MEAN} <= seconds.keys():
        limit = seconds[MERGEKIT] / _OVER_MERGEKIT
        wanted.append((f"{MEAN} {_OVER_MERGEKIT:g} times as fast as {MERGEKIT}", seconds[MEAN], limit))
    wanted += [(f"{name} in {limit:g} s", seconds[name], limit) for name, limit in _SECONDS.items() if name in seconds]
    said = [
        f"{what}: {'met' if took <= limit else 'missed'} ({took:.1f} s, {took / limit:.2f} of {limit:.1f} s)"
        for what, took, limit in wanted
    ]
    for row in rows:
        most, peak = _BYTES.get(row["name"]), row["peak_bytes"]
        if most is not None:
            verdict = "met" if peak <= most else "missed"
            said.append(f"{row['name']} within {most / 1e9:g} GB: {verdict} ({peak / 1e9:.1f} GB)")
    return said


def joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the figures of several runs as one: a row measured later takes the place of an earlier one of its name."""
    rows = {row["name"]: row for figures in runs for row in figures["rows"]}
    found: dict[str, Any] = {}
    for figures in runs:
        found |= figures
    return found | {"rows": list(rows.values()), "targets": targets(list(rows.values()))}


def page(figures: dict[str, Any], png: Path | None, note: str | None) -> str:
    """Give the page of results: what was measured on what, the table, every target met or missed."""
    measured = {row["name"] for row in figures["rows"]}
    machine = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figures["environment"].items())
    lines = [
        "# How long conversions take",
        "",
        "Made by `python -m convert_attn.eval.benchmarks.conversion` and, for single layers, by",
        "`python -m convert_attn.eval.benchmarks.conversion.layers`.",
        "",
        f"{machine}.",
        "",
        f"A Llama of random bf16 weights, {figures['source_bytes'] / 1e9:.2f} GB, in memory (page cache) before a run;",
        "processes of their own that take turns; medians, least and most in brackets. `start-up` is `--method mean`",
        "of a model of 33 MB. Peak memory is that of all processes of a command together, with the one in which the",
        "result is run. `cp -r, sync` waits for the disk, as a conversion does before its result appears. Rows of",
        "layers are one run of the method alone, without reading, writing and the start of a process.",
        "",
        *([] if note is None else [note, ""]),
        markdown(figures["rows"]),
        "",
        *(f"- {sentence}" for sentence in figures["targets"]),
        *(f"- {name} in {limit:g} s: not measured" for name, limit in _SECONDS.items() if name not in measured),
    ]
    if MERGEKIT not in measured:
        lines += ["", "mergekit: not measured (give --mergekit PYTHON of an environment that has it)."]
    if png is not None:
        lines += ["", f"![seconds of each]({png.name})"]
    return "\n".join(lines) + "\n"


def draw(figures: dict[str, Any], file: Path) -> None:
    """A bar of seconds for each row, with the least and the most, the processor's seconds beside it."""
    from matplotlib.figure import Figure  # of an extra

    rows = [row for row in figures["rows"] if row["seconds"] >= _DRAWN]
    figure = Figure(figsize=(9, 1.2 + 0.6 * len(rows)), layout="constrained")
    panel = figure.subplots()
    places = range(len(rows))
    seconds = [row["seconds"] for row in rows]
    around = [
        [row["seconds"] - row["least"] for row in rows],
        [row["most"] - row["seconds"] for row in rows],
    ]
    panel.barh([place - 0.2 for place in places], seconds, 0.4, xerr=around, color="tab:blue", label="wall clock")
    processor = [row["processor_seconds"] for row in rows]
    panel.barh([place + 0.2 for place in places], processor, 0.4, color="tab:orange", label="processor, all processes")
    panel.set_yticks(list(places), [row["name"] for row in rows])
    panel.invert_yaxis()
    panel.set(xlabel="seconds", title=f"conversion of {figures['source_bytes'] / 1e9:.2f} GB")
    panel.grid(visible=True, axis="x", color="0.9")
    panel.set_axisbelow(True)
    panel.legend()
    conditions = ", ".join(f"{key} {value}" for key, value in figures["environment"].items())
    figure.suptitle(f"medians, least to most as lines; {conditions}", fontsize="x-small", wrap=True)
    figure.savefig(file, dpi=150)
