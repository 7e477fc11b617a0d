"""Which families of models become what, by the files of facts and of targets alone: no checkpoint is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convert_attn.convert.archs import UNSUPPORTED, architectures
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.block_facts import Added, Rotary
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.classes.auto_classes import writes_alone
from convert_attn.convert.targets import convertible, fitting

_LAYERS, _HEADS, _HEAD_DIM = 2, 8, 8  # of the model that stands for a family
_RANK = 16
COLUMNS = ("gqa", "mqa", "mla")


@dataclass(frozen=True)
class Home:
    """A class that holds a family's result.

    Attributes:
        name: its model type, "same class" where that is the source's own.
        layout: "native" or "custom".
    """

    name: str
    layout: str

    def __str__(self) -> str:
        return self.name if self.name == _SAME else f"`{self.name}` ({self.layout})"


_SAME = "same class"


@dataclass(frozen=True)
class Cell:
    """What becomes of a family.

    Attributes:
        homes: the classes that hold it, native ones first.
        refused: why there are none, "" where there are some.
    """

    homes: tuple[Home, ...]
    refused: str = ""

    def __str__(self) -> str:
        return " or ".join(map(str, self.homes)) or f"refused: {self.refused}"

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"classes": [vars(home) for home in self.homes], "refused": self.refused or None}


Cells = Mapping[str, Cell]
"""By a value of `--to`."""


def families() -> dict[str, Cells]:
    """Tell what every family that is converted becomes, by model type."""
    known = architectures()
    return {name: {to: _cell(known[name], to) for to in COLUMNS} for name in convertible()}


def not_converted() -> dict[str, str]:
    """Model types that are known and not converted, and why: the rest of a sentence that begins with the type."""
    return dict(sorted(UNSUPPORTED.items()))


def _cell(arch: Architecture, to: str) -> Cell:
    frequencies = tuple(10000 ** (-2 * plane / _HEAD_DIM) for plane in range(_HEAD_DIM // 2))
    sizes = Geometry(
        hidden_size=_HEADS * _HEAD_DIM,
        num_layers=_LAYERS,
        num_heads=_HEADS,
        num_kv_heads=_HEADS,
        head_dim=_HEAD_DIM,
        context=_HEADS * _HEAD_DIM,
        position=Rotary(inv_freq=frequencies) if arch.turns else Added(),
    )
    form: Form = LatentCache.of(_RANK, _HEAD_DIM if arch.turns else 0, _LAYERS)
    if to != "mla":
        form = SharedHeads.of(1 if to == "mqa" else _HEADS // 2, _LAYERS)
    homes = tuple(Home(target.becomes or _SAME, target.layout) for target in fitting(arch, sizes, form))
    return Cell(homes, "" if homes else _reason(arch, to))


def _reason(arch: Architecture, to: str) -> str:
    """Why no class holds a family, by what its attention and its blocks have."""
    if to != "mla":
        return "no class with fewer K/V heads has its attention"
    if not arch.causal:
        return "an encoder keeps no cache"
    if arch.seeing is not None:
        return "no class with a latent has layers that look at images"
    if arch.cross is not None:
        return "no class with a latent has a second attention, on an encoder's states"
    return f"no class with a latent {'has sinks' if arch.sinks else 'takes its blocks'}"


def _rows() -> Iterator[tuple[str, ...]]:
    """Families that become the same together, in the order of the first of each."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, cells in families().items():
        inside = "" if writes_alone(name) else " (inside larger models)"
        alike.setdefault(tuple(str(cells[to]) for to in COLUMNS), []).append(f"`{name}`{inside}")
    for texts, names in alike.items():
        yield ", ".join(names), *texts


def markdown() -> str:
    """Write the table of README: a row for the families that become the same."""
    lines = [("source (`model_type`)", *(to.upper() for to in COLUMNS)), ("---",) * (1 + len(COLUMNS)), *_rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def as_dict() -> dict[str, Any]:
    """For --json."""
    return {
        "families": {name: {to: cell.as_dict() for to, cell in cells.items()} for name, cells in families().items()},
        "not_converted": not_converted(),
    }
