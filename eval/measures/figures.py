"""Numbers as the reader sees them: with error, with unit."""

from __future__ import annotations

from typing import Any


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without exponents where they can be avoided; - for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 1e-4 else f"{value:#.{digits}g}".rstrip(".")


def estimate(value: dict[str, Any] | None, digits: int = 3, percent: bool = False) -> str:
    """Give mean ± standard error, to the place where the error begins."""
    if value is None:
        return "-"
    mean, error = value["mean"], value["error"]
    scale, unit = (100.0, "%") if percent else (1.0, "")
    if not error:
        plain = f"{mean * scale:.2f}" if percent else number(mean, digits)
        return f"{plain}{unit}"
    if error * scale < 1e-7:
        return f"{mean * scale:.1e} ± {error * scale:.1e}{unit}"
    decimals = max(0, 1 - _exponent(error * scale))
    return f"{mean * scale:,.{decimals}f} ± {error * scale:.{decimals}f}{unit}"


def count(value: float | None) -> str:
    """Give a number of bytes; as a rule whole."""
    return "-" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def size(value: float | None) -> str:
    """Give bytes in a unit that fits."""
    if value is None:
        return "-"
    for unit, step in (("GB", 1e9), ("MB", 1e6)):
        if value >= step:
            return f"{value / step:,.1f} {unit}" if value < 100 * step else f"{value / step:,.0f} {unit}"
    return f"{value:,.0f} B"


def speedup(figures: dict[str, Any] | None) -> str:
    """Times as fast as the original, with the range of the quartiles."""
    if figures is None:
        return "-"
    ratio = figures["speedup"]
    return f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def spread(times: dict[str, Any]) -> str:
    """Median and quartiles in milliseconds."""
    low, median, high = (times[key] for key in ("lower_quartile_ms", "median_ms", "upper_quartile_ms"))
    return f"{number(median)} ({number(low)} to {number(high)})"
