"""A value of --for, as the command line reads it."""

from __future__ import annotations

from typing import Any

import click


class EngineName(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.5 on
    """An engine with rules, which are imported when one is given or they are listed: they import torch."""

    name = "engine"

    @staticmethod
    def _known() -> Any:
        from convert_attn.convert.serving_rules import OPTIONS

        return click.Choice(list(OPTIONS))

    def get_metavar(self, *args: Any, **options: Any) -> Any:
        """As of a choice."""
        return self._known().get_metavar(*args, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As of a choice."""
        return self._known().convert(value, param, ctx)
