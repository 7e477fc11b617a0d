"""Files of a folder that is not trusted: no link out of it is followed, no JSON is read without end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import UsageError

_MAX_JSON = 100_000_000  # as for a safetensors header
_MOST_FILES = 10_000  # of a folder that is looked through: more are not listed


def own_file(folder: Path, name: str) -> Path:
    """Give a file of a checkpoint, there or not.

    A source is not trusted: what it links to elsewhere on this machine must not end up in a result that is published.
    The Hub's cache is another matter: its snapshots are links to the blobs beside them.

    Raises:
        UsageError: it is a link that leads out of the folder.
    """
    path = folder / name
    if path.is_symlink():
        home, target = folder.resolve(), path.resolve()
        blobs = [above.parent / "blobs" for above in home.parents if above.name == "snapshots"]
        if not any(target.is_relative_to(place) for place in (home, *blobs)):
            raise UsageError(f"'{name}' in {folder} is a link out of the folder, which is not followed: copy the file")
    return path


def read_json(path: Path) -> Any:
    """Give a JSON file.

    Raises:
        ValueError, RecursionError: it is none.
    """
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"it has more than {_MAX_JSON} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def listing(folder: Path) -> list[str]:
    """The files below a folder as names relative to it, sorted; hidden folders and folders behind links are left out.

    A link to a folder is listed as if it were a file.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in links]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in (*files, *links)]
        if len(found) > _MOST_FILES:
            break
    return sorted(Path(name).as_posix() for name in found)
