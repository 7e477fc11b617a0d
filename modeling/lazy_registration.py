"""Classes made known to the Auto classes by their names: a file is imported when its class is asked for.

transformers' own tables of classes work by name, too, but for its own files only. What others register is kept in an
attribute `_extra_content` of each table, a plain dict, which is replaced by a mapping that imports what it gives.
This is no public interface: where a table has no such dict, nothing is replaced, and the classes have to be
registered as classes.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["ClassName", "after_import", "takes_names", "written_to_take_names"]


@dataclass(frozen=True)
class ClassName:
    """A class by its module and its name there."""

    module: str
    name: str

    def load(self) -> Any:
        """Import the module and give the class."""
        return getattr(importlib.import_module(self.module), self.name)


class Registered(MutableMapping[Any, Any]):
    """What was registered in a table of an Auto class: a dict in which keys and values may be a `ClassName`.

    Nobody is given one: a key is found by the class, too, and is that class when iterated; a value is imported.
    """

    def __init__(self, content: dict[Any, Any]) -> None:
        self._content = content

    def _key(self, key: Any) -> Any:
        named = ClassName(getattr(key, "__module__", ""), key.__name__) if isinstance(key, type) else key
        return named if named in self._content else key

    def __getitem__(self, key: Any) -> Any:
        value = self._content[self._key(key)]
        return value.load() if isinstance(value, ClassName) else value

    def __setitem__(self, key: Any, value: Any) -> None:
        self._content[self._key(key)] = value

    def __delitem__(self, key: Any) -> None:
        del self._content[self._key(key)]

    def __contains__(self, key: object) -> bool:
        """Imports nothing, which the mixin's would: it asks for the value."""
        return self._key(key) in self._content

    def __iter__(self) -> Iterator[Any]:
        return iter([key.load() if isinstance(key, ClassName) else key for key in self._content])

    def __len__(self) -> int:
        return len(self._content)


def takes_names(table: Any) -> bool:
    """Tell whether a `ClassName` can be put into a table's `_extra_content`; make it so where that is a plain dict."""
    content = getattr(table, "_extra_content", None)
    if type(content) is dict:
        content = table._extra_content = Registered(content)
    return isinstance(content, Registered)


def written_to_take_names(module: ModuleType) -> bool:
    """Tell from the text of transformers' files whether its tables will take names, without importing them."""
    folder = Path(module.__file__ or "").parent / "models" / "auto"
    files = [folder / "configuration_auto.py", folder / "auto_factory.py"]
    return all(f.is_file() and "self._extra_content = {}" in f.read_text(encoding="utf-8") for f in files)


def after_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call `action` with a module: at once where it is imported, else right after it has run."""
    if name in sys.modules:
        action(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Waiting(name, action))


class _Waiting(MetaPathFinder):
    """Finds nothing itself: has the loader that others find for a module call the action afterwards."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the spec of that module, which others find; None of all else."""
        if fullname != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            _call_after(spec.loader, self.action)
        return spec


def _call_after(loader: Loader, action: Callable[[ModuleType], None]) -> None:
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        action(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]
