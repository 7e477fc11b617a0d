"""Code that a checkpoint names for its tokenizer: what it is, and the files that it is in. Nothing is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from convert_attn.convert.checkpoint.files import own_file, read_json
from convert_attn.convert.errors import UsageError

SETTINGS = "tokenizer_config.json"
_AUTO = "AutoTokenizer"
_MODULE = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class TokenizerCode:
    """The tokenizer's code.

    Attributes:
        reference: as `auto_map` has it: [slow, fast], one of them may be null.
        files: names of the Python files here that hold it; none where it is in another repository.
    """

    reference: Any
    files: tuple[str, ...]

    @property
    def where(self) -> str:
        """The files, or the other repository's name for the class."""
        return ", ".join(self.files) or ", ".join(_references(self.reference))


def tokenizer_code(folder: Path) -> TokenizerCode | None:
    """Tell what code a tokenizer comes from, as transformers 5 looks for it: in tokenizer_config.json alone.

    Raises:
        UsageError: the code that is named is not there.
    """
    found = _named(json_object(folder / SETTINGS).get("auto_map"))
    if found is None:
        return None
    files: list[str] = []
    for reference in _references(found):
        if "--" in reference:  # in another repository
            continue
        module = reference.partition(".")[0]
        name = f"{module}.py"
        if not _MODULE.fullmatch(module) or not own_file(folder, name).is_file():
            raise UsageError(f"the tokenizer in {folder} is made by {name}, which is not there: download it too")
        try:
            needed = [name, *(Path(path).name for path in get_relative_import_files(str(folder / name)))]
        except (OSError, UnicodeError) as error:
            raise UsageError(f"the tokenizer in {folder} needs a file that cannot be read ({error})") from None
        files += [needed_name for needed_name in needed if needed_name not in files]
    return TokenizerCode(found, tuple(files))


def json_object(path: Path) -> dict[str, Any]:
    """Give a JSON object from a file, {} where there is none that can be read."""
    try:
        content = read_json(own_file(path.parent, path.name)) if path.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _named(auto_map: Any) -> Any:
    """The tokenizer's entry of an `auto_map`; older files have the entry itself there."""
    found = auto_map.get(_AUTO) if isinstance(auto_map, dict) else auto_map
    return found if _references(found) else None


def _references(found: Any) -> list[str]:
    entries = found if isinstance(found, (list, tuple)) else [found]
    return [entry for entry in entries if isinstance(entry, str) and entry]
