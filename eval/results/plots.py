"""The plots: KL against cache bytes, and the time of a decode step against the context."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_FLOOR = 1e-6  # nats per token: below, float32 cannot tell a model from its original
_THEMES = {
    "light": {"ink": "#1c1e21", "paper": "#ffffff", "grid": "#d9dce1", "muted": "#666c75"},
    "dark": {"ink": "#e6e8eb", "paper": "#16181c", "grid": "#363a41", "muted": "#9aa1ab"},
}
# Okabe and Ito's palette, told apart with any colour vision; black and yellow left out
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "osD^vP"
_LONG = 24  # letters of a name, of which two do not fit beside each other


def plots(document: dict[str, Any]) -> dict[str, bytes]:
    """ "png" (light), "light" and "dark" (both SVG); none where nothing that can be drawn was measured."""
    found: dict[str, bytes] = {}
    for theme, colours in _THEMES.items():
        figure = _figure(document, colours)
        if figure is None:
            return {}
        found[theme] = _bytes(figure, "svg")
        if theme == "light":
            found["png"] = _bytes(figure, "png")
    return found


def _bytes(figure: Figure, kind: str) -> bytes:
    held = io.BytesIO()
    # no date: the same document gives the same bytes
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context({"svg.hashsalt": "convert-attn"}):
        figure.savefig(held, format=kind, dpi=160, metadata=metadata)
    return held.getvalue()


def _figure(document: dict[str, Any], theme: dict[str, str]) -> Figure | None:
    models = document["models"]
    styles = {
        model["name"]: {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
        for index, model in enumerate(models)
    }
    panels: list[Any] = []
    if any(model["quality"] and model["cache"] for model in models):
        panels.append(_pareto)
    batch = max((row["batch_size"] for model in models for row in _rows(model)), default=None)
    if batch is not None:
        panels += [_decode, _decode_attention]
    if not panels:
        return None
    style: Any = {
        "font.size": 10,
        "text.color": theme["ink"],
        "axes.labelcolor": theme["ink"],
        "axes.edgecolor": theme["grid"],
        "axes.facecolor": theme["paper"],
        "figure.facecolor": theme["paper"],
        "xtick.color": theme["muted"],
        "ytick.color": theme["muted"],
        "grid.color": theme["grid"],
        "legend.frameon": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.2 * len(panels), 4.6), layout="constrained")
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            axes.grid(visible=True, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            panel(axes, document, styles, theme, batch)
    return figure


def _rows(model: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in (model["speed"] or {}).get("rows", []) if "skipped" not in row]


def _pareto(axes: Axes, document: dict[str, Any], styles: dict[str, Any], theme: dict[str, str], batch: Any) -> None:
    points = []
    for model in document["models"]:
        if not (model["quality"] and model["cache"]):
            continue
        kl, held = model["quality"]["kl"], model["cache"]["bytes_per_token"]
        shown = max(kl["mean"], _FLOOR)
        error = kl["error"] if kl["error"] and kl["mean"] > _FLOOR else 0.0
        low = min(error, shown * 0.9)  # a log axis has no zero
        axes.errorbar(held, shown, yerr=[[low], [error]], markersize=8, linestyle="", **styles[model["name"]])
        name = model["name"] if kl["mean"] > _FLOOR else f"{model['name']} (at most {_FLOOR:g})"
        points.append((held, shown, name))
    axes.set_yscale("log")
    whole = (document["original"]["cache"] or {}).get("bytes_per_token")
    if whole:
        axes.axvline(whole, color=theme["muted"], linestyle="--", linewidth=1.2)
        axes.annotate(
            f"{document['original']['name']}: KL is 0",
            (whole, 0.02),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="right",
            va="bottom",
            color=theme["muted"],
        )
    _frontier(axes, points, theme)
    axes.set_xlim(left=0, right=1.08 * max([whole or 0, *(held for held, _, _ in points)]))
    axes.margins(y=0.18)
    _label(axes, points)
    axes.set_xlabel(f"cache, bytes per token ({document['environment']['dtype']})")
    axes.set_ylabel("KL(original || converted), nats per token")
    axes.set_title("Quality lost against cache\n(down and left is better)")


def _frontier(axes: Axes, points: list[tuple[float, float, str]], theme: dict[str, str]) -> None:
    """A line through the conversions that no other beats in both."""
    best = math.inf
    front = []
    for held, kl, _ in sorted(points):
        if kl < best:
            front.append((held, kl))
            best = kl
    if len(front) > 1:
        label = "not beaten in both"
        axes.plot(*zip(*front, strict=True), color=theme["muted"], linewidth=1, zorder=0, label=label)
        axes.legend(loc="upper right", fontsize=9, bbox_to_anchor=(0.92, 1.0))


def _label(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Names beside the points, inwards, over those in the middle; below where a neighbour above is near."""
    right = axes.get_xlim()[1]
    for held, kl, name in points:
        crowded = any(
            other != name and abs(x - held) < 0.25 * right and kl <= y < 2.5 * kl and (y, other) > (kl, name)
            for x, y, other in points
        )
        side = "left" if held < 0.35 * right else "right" if held > 0.65 * right else "center"
        axes.annotate(
            name,
            (held, kl),
            xytext=({"left": 9, "right": -9, "center": 0}[side], -14 if crowded else 8),
            textcoords="offset points",
            ha=side,
        )


def _decode(axes: Axes, document: dict[str, Any], styles: dict[str, Any], theme: dict[str, str], batch: int) -> None:
    _lines(axes, document, styles=styles, theme=theme, batch=batch, key="decode")
    axes.set_title(f"A decode step, batch {batch}: whole model")


def _decode_attention(
    axes: Axes, document: dict[str, Any], styles: dict[str, Any], theme: dict[str, str], batch: int
) -> None:
    _lines(axes, document, styles=styles, theme=theme, batch=batch, key="decode_attention")
    axes.set_title(f"A decode step, batch {batch}: attention only")


def _lines(
    axes: Axes, document: dict[str, Any], *, styles: dict[str, Any], theme: dict[str, str], batch: int, key: str
) -> None:
    contexts: set[int] = set()
    for model in document["models"]:
        rows = sorted((r for r in _rows(model) if r["batch_size"] == batch and r[key]), key=lambda r: r["context"])
        if not rows:
            continue
        # the original takes part in every conversion's run, and machines drift: a comparison is within one run
        dashed = {"color": styles[model["name"]]["color"], "marker": "_", "linestyle": "--", "alpha": 0.6}
        _line(axes, rows, key=key, side="original", label=None, style=dashed)
        _line(axes, rows, key=key, side="converted", label=model["name"], style=styles[model["name"]])
        contexts |= {row["context"] for row in rows}
    axes.plot([], [], color=theme["muted"], linestyle="--", label=f"{document['original']['name']}, in the same run")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(contexts), [f"{context:,}" for context in sorted(contexts)])
    axes.minorticks_off()
    labels = [str(label) for label in axes.get_legend_handles_labels()[1]]
    columns = 1 if max(map(len, labels)) > _LONG else 2
    axes.set_ylim(bottom=0, top=(1.15 + 0.1 * math.ceil(len(labels) / columns)) * axes.get_ylim()[1])
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("milliseconds (median; bars: quartiles)")
    axes.legend(loc="upper left", ncols=columns, fontsize=9)


def _line(
    axes: Axes, rows: list[dict[str, Any]], *, key: str, side: str, label: str | None, style: dict[str, Any]
) -> None:
    spreads = [row[key][side] for row in rows]
    middle = [spread["median_ms"] for spread in spreads]
    below = [spread["median_ms"] - spread["lower_quartile_ms"] for spread in spreads]
    above = [spread["upper_quartile_ms"] - spread["median_ms"] for spread in spreads]
    contexts = [row["context"] for row in rows]
    axes.errorbar(contexts, middle, yerr=[below, above], label=label, capsize=3, linewidth=1.6, **style)
