"""Results kept as they come: one JSON file per model in a folder, so that an interrupted run can be taken up again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from convert_attn.convert.checkpoint.writer import replace_file
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.processes import is_alive
from convert_attn.eval.measures.contenders import Contender

REPORTS = ("eval.json", "eval.md", "eval.html", "eval.png")
_PARTS, _SETTINGS = "parts", "settings.json"
_TEMPORARY = re.compile(r"\..+\.(\d+)")  # of `replace_file`: the name and the process


def write_whole(path: Path, content: str | bytes) -> None:
    """`replace_file`, in words.

    Raises:
        ConvertAttnError: it cannot be written.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise ConvertAttnError(f"cannot write '{path}': {error.strerror or error}") from None


class Store:
    """What has been measured, by model and part; without a folder only in memory."""

    def __init__(self, folder: Path | None, settings: dict[str, Any], overwrite: bool) -> None:
        """Open or make the folder.

        Args:
            settings: everything that the results depend on, apart from the conversions themselves.

        Raises:
            UsageError: the folder holds something else, or results of other settings, and `overwrite` is not given.
        """
        self._folder = folder
        self._held: dict[str, dict[str, Any]] = {}
        if folder is None:
            return
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not self._ours(folder))):
            raise UsageError(f"output '{folder}' holds something that is no evaluation: choose another --output")
        if folder.is_dir() and self._ours(folder):
            self._reopen(folder, settings, overwrite)
        try:
            (folder / _PARTS).mkdir(parents=True, exist_ok=True)
            self._clean(folder)
        except OSError as error:
            raise ConvertAttnError(f"cannot make '{folder}': {error.strerror or error}") from None
        write_whole(folder / _PARTS / _SETTINGS, json.dumps(settings, indent=2) + "\n")

    @staticmethod
    def _ours(folder: Path) -> bool:
        """Settings are there; or nothing else is yet, because a run was killed as it began."""
        if (folder / _PARTS / _SETTINGS).is_file():
            return True
        begun = [path for path in folder.rglob("*") if not _TEMPORARY.fullmatch(path.name)]
        return begun == [folder / _PARTS]

    @staticmethod
    def _clean(folder: Path) -> None:
        """Remove half-written files of runs that were killed."""
        for path in folder.rglob(".*"):
            found = _TEMPORARY.fullmatch(path.name)
            if found and not is_alive(int(found[1])):
                path.unlink(missing_ok=True)

    @staticmethod
    def _reopen(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
        try:
            found = json.loads((folder / _PARTS / _SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:  # killed as it began
            return
        except ValueError:
            found = {}
        if overwrite:
            # the settings stay until new ones take their place: they tell whose folder it is, also after a kill
            for path in [folder / name for name in REPORTS] + list((folder / _PARTS).iterdir()):
                if path.name != _SETTINGS:
                    path.unlink(missing_ok=True)
            return
        same = json.loads(json.dumps(settings))
        differing = sorted(key for key in {*found, *same} if found.get(key) != same.get(key))
        if differing:
            raise UsageError(
                f"output '{folder}' holds an evaluation with other settings ({', '.join(differing)}): give --overwrite "
                "to replace it, or another --output"
            )

    def get(self, contender: Contender, part: str) -> Any | None:
        """Give a part's result, None where it is still to be measured or the model's files have changed since."""
        return self._load(contender).get(part)

    def put(self, contender: Contender, part: str, result: Any) -> None:
        """Keep a part's result."""
        parts = self._load(contender)
        parts[part] = result
        if self._folder is not None:
            content = {"model": contender.origin.name, "identity": contender.identity, "parts": parts}
            write_whole(self._file(contender), json.dumps(content) + "\n")

    def _load(self, contender: Contender) -> dict[str, Any]:
        if contender.name not in self._held:
            self._held[contender.name] = self._read(contender)
        return self._held[contender.name]

    def _read(self, contender: Contender) -> dict[str, Any]:
        if self._folder is None:
            return {}
        try:
            content = json.loads(self._file(contender).read_text(encoding="utf-8"))
            return dict(content["parts"]) if content["identity"] == contender.identity else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _file(self, contender: Contender) -> Path:
        assert self._folder is not None
        return self._folder / _PARTS / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', contender.name)}-{contender.identity}.json"
