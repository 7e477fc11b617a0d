"""Values of options, as users type them."""

from __future__ import annotations

import math
from typing import Any

import click

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}


class Count(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.5 on
    """A number of tokens: 5M, 250K, 1.5B, 1000000."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """ "5M" -> 5000000."""
        if isinstance(value, int):
            return value
        text = str(value).strip().upper()
        unit = _UNITS.get(text[-1:], 1)
        try:
            count = float(text[:-1] if unit > 1 else text) * unit
        except ValueError:
            count = math.nan
        if not 1 <= count < 1e15:
            self.fail(f"'{value}' is no number of tokens such as 5M, 250K or 1000000", param, ctx)
        return int(count)


def short_count(tokens: int) -> str:
    """Tell what `Count` reads: 1000000 -> "1M"."""
    unit, letter = next(((unit, letter) for letter, unit in reversed(_UNITS.items()) if tokens >= unit), (1, ""))
    return f"{tokens / unit:g}{letter}"


class Share(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A part of a whole: 0.25 or 1/4; whether it is one that will do is checked later."""

    name = "F"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """ "1/4" -> 0.25."""
        if isinstance(value, float):
            return value
        above, line, below = str(value).partition("/")
        try:
            return float(above) / float(below) if line else float(above)
        except (ValueError, ZeroDivisionError):
            self.fail(f"'{value}' is no share such as 0.25 or 1/4", param, ctx)


class ShareOrAuto(Share):
    """A part of a whole, or "auto", which is None."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """ "auto" -> None."""
        return None if value == "auto" else super().convert(value, param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Bytes: 4G, 500M, 4000000000, units of a thousand."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """ "4G" -> 4000000000."""
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("B")
        unit = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}.get(text[-1:], 1)
        try:
            size = float(text[:-1] if unit > 1 else text) * unit
        except ValueError:
            size = math.nan
        if not 1 <= size < 1e18:
            self.fail(f"'{value}' is no size in bytes such as 4G or 500M", param, ctx)
        return int(size)


class Numbers(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Whole numbers with commas between.

    Args:
        example: for the message where they are not.
        distinct: whether one that comes again is left out.
        least: the smallest that will do.
    """

    name = "N,..."

    def __init__(self, example: str, distinct: bool = False, least: int = 0) -> None:
        self.example, self.distinct, self.least = example, distinct, least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """ "512,2048" -> (512, 2048)."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) >= self.least for part in parts):
            bound = f" of at least {self.least}" if self.least else ""
            self.fail(f"'{value}' is no list of whole numbers{bound} such as {self.example}", param, ctx)
        numbers = tuple(map(int, parts))
        return tuple(dict.fromkeys(numbers)) if self.distinct else numbers


class ByLayer(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """One whole number for all layers, or one for each with commas between; which will do is checked later."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """ "4" -> (4,), "4,4,2" -> (4, 4, 2)."""
        if isinstance(value, tuple):
            return value
        numbers = []
        for part in str(value).split(","):
            try:
                numbers.append(int(part))
            except ValueError:
                self.fail(f"'{part}' is not a valid integer", param, ctx)
        return tuple(numbers)


class Words(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Words with commas between; what they mean is checked later."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """ "layerwise,distill" -> ("layerwise", "distill")."""
        return value if isinstance(value, tuple) else tuple(part.strip() for part in str(value).split(","))
