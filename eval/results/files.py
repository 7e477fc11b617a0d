"""A report's files: JSON, Markdown, PNG and HTML."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convert_attn.eval.results.page import page
from convert_attn.eval.results.report import markdown
from convert_attn.eval.results.store import write_whole


def write_reports(document: dict[str, Any], folder: Path) -> tuple[dict[str, Path], list[str]]:
    """JSON, Markdown, PNG and HTML.

    Returns:
        the files by name, and what could not be made, in sentences.

    Raises:
        ConvertAttnError: a file cannot be written.
    """
    notes: list[str] = []
    pictures: dict[str, bytes] = {}
    if find_spec("matplotlib") is None:
        notes.append("matplotlib is not installed, so the report has no plots: `pip install 'convert-attn[eval]'`.")
    else:
        from convert_attn.eval.results.plots import plots

        pictures = plots(document)
    contents: dict[str, str | bytes] = {
        "eval.json": json.dumps(document, indent=1) + "\n",
        "eval.md": markdown(document, plot="png" in pictures),
        "eval.html": page(document, pictures),
    }
    if "png" in pictures:
        contents["eval.png"] = pictures["png"]
    for name, content in contents.items():
        write_whole(folder / name, content)
    return {name: folder / name for name in contents}, notes
