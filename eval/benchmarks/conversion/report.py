"""The figures of the conversion benchmark as a Markdown table, targets met or missed, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COPY, START, MEAN, SUBSPACE, LATENT, MERGEKIT = "cp -r", "start-up", "mean", "subspace", "mla", "mergekit"
_NEAR_COPY, _OVER_MERGEKIT = 1.5, 3.0  # times
_SECONDS = {SUBSPACE: 20.0, LATENT: 30.0}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Give the rows as a Markdown table."""
    lines = [
        "| | seconds (quartiles) | processor seconds | peak memory, GB | times cp |",
        "|---|--:|--:|--:|--:|",
    ]
    copied = next((row["seconds"] for row in rows if row["name"] == COPY), None)
    for row in rows:
        times = "-" if copied is None else f"{row['seconds'] / copied:.2f}"
        lines.append(
            f"| {row['name']} | {row['seconds']:.2f} ({row['lower_quartile']:.2f} to {row['upper_quartile']:.2f}) "
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
    return [
        f"{what}: {'met' if took <= limit else 'missed'} ({took:.1f} s, {took / limit:.2f} of {limit:.1f} s)"
        for what, took, limit in wanted
    ]


def draw(figures: dict[str, Any], file: Path) -> None:
    """A bar of seconds for each row, with its quartiles, the processor's seconds beside it."""
    from matplotlib.figure import Figure  # of an extra

    rows = figures["rows"]
    figure = Figure(figsize=(9, 1.2 + 0.6 * len(rows)), layout="constrained")
    panel = figure.subplots()
    places = range(len(rows))
    seconds = [row["seconds"] for row in rows]
    around = [
        [row["seconds"] - row["lower_quartile"] for row in rows],
        [row["upper_quartile"] - row["seconds"] for row in rows],
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
    figure.suptitle(f"medians, quartiles as lines; {conditions}", fontsize="x-small", wrap=True)
    figure.savefig(file, dpi=150)
