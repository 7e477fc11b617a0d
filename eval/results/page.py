"""The report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

from convert_attn.eval.results.report import sections, setup, verdict

_TEMPLATE = Path(__file__).with_name("page.html")


def page(document: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Give the page.

    Args:
        pictures: "light" and "dark" as SVG; none for a page without plots.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        original=document["original"]["name"],
        notes=document["notes"],
        verdict=verdict(document),
        sections=sections(document),
        setup=setup(document),
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items() if name != "png"},
    )
