"""Methods by name: every module here that defines METHOD is one."""

from __future__ import annotations

from convert_attn.convert.discovery import discover
from convert_attn.convert.methods.base import Method

DEFAULT = "subspace"


def methods() -> dict[str, Method]:
    """Give all methods, by name."""
    return {method.name: method for method in discover(__name__, "METHOD", Method)}
