"""What a run writes down as it goes: a JSON line for every step and measurement, and the curve drawn from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert_attn.convert.checkpoint.writer import replace_file
from convert_attn.convert.errors import UsageError
from convert_attn.convert.heal.state.settings import LAYERWISE

Record = dict[str, Any]
Show = Callable[[Record], None]
"""Called with each record as it is written."""

LOG, CURVE = "heal.jsonl", "heal.png"
START = "start"  # the stage of the measurement before any training


def hidden(record: Record) -> None:
    """Show nothing."""


class Journal:
    """Records in a file, one JSON object a line.

    Args:
        path: the file; None: nothing is written (all processes but the first).
        tensorboard: folder for TensorBoard's files, None for none.
    """

    def __init__(self, path: Path | None, show: Show, tensorboard: Path | None = None) -> None:
        self._path, self._show = path, show
        self._board = None if tensorboard is None or path is None else _board(tensorboard)
        if path is not None and path.exists():  # of a killed run: its last line may be cut
            self._keep(read(path))

    def write(self, record: Record) -> None:
        """Add a record."""
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{record['stage']}/{name}", value, record["step"])
            self._board.flush()
        self._show(record)

    def complete(self, records: list[Record]) -> None:
        """Add those that are not there: what they tell was done, and a kill may have come before it was told."""
        if self._path is None:
            return
        there = read(self._path) if self._path.exists() else []
        for record in records:
            if record not in there:
                self.write(record)

    def rewind(self, stage: str, step: int) -> None:
        """Forget what a killed run wrote after the state that it is taken up from: the stage's steps from `step` on."""
        if self._path is None or not self._path.exists():
            return
        records = read(self._path)
        kept = [r for r in records if r["stage"] != stage or r["step"] < step]
        # a measurement carries the number of steps before it, which is the step it is taken up at
        kept += [r for r in records if r["stage"] == stage and r["step"] == step and "selection" in r][:1]
        self._keep(kept)

    def _keep(self, records: list[Record]) -> None:
        assert self._path is not None
        replace_file(self._path, "".join(json.dumps(record) + "\n" for record in records))


def read(path: Path) -> list[Record]:
    """Give all records; a last line that was cut by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs tensorboard: pip install 'convert-attn[tensorboard]'") from None
    return SummaryWriter(str(folder))


def draw(records: list[Record], path: Path) -> bool:
    """Write `curves` as PNG; False without matplotlib or nothing to draw."""
    figure = curves(records)
    if figure is not None:
        figure.savefig(path, dpi=140)
    return figure is not None


def curves(records: list[Record]) -> Any | None:
    """A matplotlib figure of the loss of every step, the measurements on selection text, and the layers' errors."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps = [r for r in records if "loss" in r and r["stage"] != LAYERWISE]
    layers = [r for r in records if r["stage"] == LAYERWISE and "after" in r]
    panels = [panel for panel in ((_curve, steps), (_layers, layers)) if panel[1]]
    if not panels:
        return None
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    for number, (panel, chosen) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.grid(visible=True, alpha=0.3)
        axes.set_axisbelow(True)
        panel(axes, chosen, records)
    return figure


def _curve(axes: Any, steps: list[Record], records: list[Record]) -> None:
    measured = [r for r in records if "selection" in r and r["stage"] == steps[0]["stage"]]
    axes.plot([r["tokens"] for r in steps], [r["loss"] for r in steps], color="#9aa1ab", linewidth=1, label="each step")
    axes.plot(
        [r["tokens"] for r in measured],
        [r["selection"] for r in measured],
        "o-",
        color="#0072b2",
        markersize=4,
        label="selection text",
    )
    values = [r["selection"] for r in measured] + [r["loss"] for r in steps]
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    for start in [r["selection"] for r in records if r["stage"] == START][:1]:
        axes.axhline(start, color="#d55e00", linestyle=":", label="as converted, selection text")
    unit = ", nats per token" if any("selection_loss" in r for r in measured) else ""  # an encoder's is a share
    axes.set(xlabel="tokens", ylabel=f"loss{unit}", title=steps[0]["stage"])
    axes.legend()


def _layers(axes: Any, layers: list[Record], records: list[Record]) -> None:
    places = range(len(layers))
    axes.plot(places, [r["before"] for r in layers], "o-", color="#d55e00", label="as converted")
    axes.plot(places, [r["after"] for r in layers], "s-", color="#009e73", label="trained")
    if all(r["after"] > 0 and math.isfinite(r["before"]) for r in layers):
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="layer", ylabel="error of the block's output, share of its change", title=LAYERWISE)
    axes.legend()
