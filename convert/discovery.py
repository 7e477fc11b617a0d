"""Plug-ins by discovery: a new file in a folder is found without being named anywhere."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

T = TypeVar("T")


def discover(package: str, attribute: str, kind: type[T]) -> list[T]:
    """Give the value of `attribute` in every module of `package` that has one, in the order of the file names.

    Raises:
        TypeError: a module's attribute is not a `kind`.
    """
    found: list[T] = []
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        if not hasattr(module, attribute):
            continue
        value = getattr(module, attribute)
        if not isinstance(value, kind):
            raise TypeError(f"{module.__name__}.{attribute} is {type(value).__name__}, not {kind.__name__}")
        found.append(value)
    return found
