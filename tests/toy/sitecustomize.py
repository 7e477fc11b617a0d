"""Where this folder is on PYTHONPATH, transformers knows the toy family as soon as it is imported."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from typing import Any


class _Finder(PathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "transformers":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def and_the_toy(module: Any) -> None:
            run(module)
            importlib.import_module("toy_family")

        spec.loader.exec_module = and_the_toy  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder)
