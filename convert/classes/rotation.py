"""How the class of a config turns queries and keys, layer by layer: seen by calling its blocks, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convert_attn.convert.classes.attention_call import BlockCall, Seen
from convert_attn.convert.errors import ConvertAttnError

_CLOSE = 1e-4  # cosines and sines of the first few positions, in float32


@dataclass(frozen=True)
class Rotation:
    """A layer's rotary position.

    Attributes:
        inv_freq: frequencies of the planes in radians per token; they turn the head's first 2 * len(inv_freq) numbers.
        kind: transformers' name for how they come about.
        scale: what cosines and sines are multiplied by.
        pairs: the class's tables have plane p at (2 p, 2 p + 1); else the tables do not tell.
    """

    inv_freq: tuple[float, ...] = ()
    kind: str = "default"
    scale: float = 1.0
    pairs: bool = False


NONE = Rotation()


def frequencies(model: nn.Module, calls: list[BlockCall]) -> list[Rotation]:
    """List the frequencies by which a model may turn, each once; of one that keeps none those of its tables."""
    return list(_frequencies(model)) or list(dict.fromkeys(_by_tables(model, calls)))


def rotations(
    model: nn.Module, known: list[Rotation], calls: list[BlockCall], seen: list[Seen], name: str
) -> tuple[Rotation, ...]:
    """Say of each layer how its queries and keys turn: by the tables that its block is given, where it uses them.

    Args:
        known: its `frequencies`, asked before any block was run: some classes move their tables to where they are run.
        name: of the checkpoint, for messages.

    Raises:
        ConvertAttnError: tables that come of none of the model's frequencies.
    """
    if not known:
        return (NONE,) * len(calls)
    found = [_of_tables(model, known, call.tables, name) for call in calls]
    pairs = zip(found, calls, seen, strict=True)
    return tuple(rotation if call.tables is None or one.turns else NONE for rotation, call, one in pairs)


def _frequencies(model: nn.Module) -> Iterator[Rotation]:
    """Every list of frequencies that a module holds; some hold one for each type of layer."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or name.endswith("original_inv_freq"):
                continue
            stem = name.removesuffix("inv_freq")
            kind = getattr(module, "rope_type", "default")
            kind = kind.get(stem.rstrip("_"), "default") if isinstance(kind, dict) else kind
            scale = float(getattr(module, f"{stem}attention_scaling", 1.0))
            yield Rotation(tuple(buffer.to(torch.float64).tolist()), str(kind), scale)


def _by_tables(model: nn.Module, calls: list[BlockCall]) -> Iterator[Rotation]:
    """Of a class that keeps no frequencies: the angles by which its tables turn the token at 1."""
    for call in calls:
        if call.tables is not None:
            cos, sin = (table[0].double() for table in _cosines_first(call.tables))
            yield Rotation(tuple(torch.atan2(sin[1], cos[1]).tolist()))
    for name, table in model.named_buffers():
        if name.endswith("embed_positions") and table.ndim == 2:  # sines, then cosines, of every position
            sin, cos = table.double().chunk(2, -1)
            yield Rotation(tuple(torch.atan2(sin[1], cos[1]).tolist()))


def _cosines_first(tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Tables [1, T, P] in the order cosines, sines: at position 0 the ones are 1, the others 0.

    Some classes have one for each of three axes, [3, 1, T, P], which are the same on text.
    """
    first, second = (table[0] if table.ndim > 3 else table for table in tables)
    tables = (first, second)
    return tables if float(first[0, 0].abs().sum()) >= float(second[0, 0].abs().sum()) else (second, first)


def _of_tables(model: nn.Module, known: list[Rotation], tables: tuple[Tensor, Tensor] | None, name: str) -> Rotation:
    if tables is None:
        if len({rotation.inv_freq for rotation in known}) == 1:
            return known[0]
        raise ConvertAttnError(
            f"{type(model).__name__} has {len(known)} lists of rotary frequencies and gives its blocks no tables of "
            "cosines and sines, so that it cannot be told which layer turns by which"
        )
    tables = _cosines_first(tables)
    errors = [(_error(rotation, tables, pairs), pairs) for rotation in known for pairs in (False, True)]
    best = min(range(len(errors)), key=lambda number: errors[number][0])
    error, pairs = errors[best]
    if not error <= _CLOSE:
        raise ConvertAttnError(
            f"{type(model).__name__} with the config.json of '{name}' turns queries and keys by other angles than its "
            "own frequencies give, or in planes other than (p, p + half) and (2 p, 2 p + 1), which this tool cannot "
            "follow"
        )
    rotation = known[best // 2]
    return Rotation(rotation.inv_freq, rotation.kind, rotation.scale, pairs)


def _error(rotation: Rotation, tables: tuple[Tensor, Tensor], pairs: bool) -> float:
    """The largest difference of the tables [1, T, 2 P] or [1, T, P] from what frequencies [P] give."""
    planes, width = len(rotation.inv_freq), tables[0].shape[-1]
    if width not in (planes, 2 * planes) or (width == planes and pairs):
        return float("inf")
    angle = torch.arange(tables[0].shape[1])[:, None] * torch.tensor(rotation.inv_freq, dtype=torch.float64)
    if width == 2 * planes:
        angle = angle.repeat_interleave(2, -1) if pairs else angle.repeat(1, 2)
    wanted = (angle.cos() * rotation.scale, angle.sin() * rotation.scale)
    return max(float((table[0].double() - want).abs().max()) for table, want in zip(tables, wanted, strict=True))
