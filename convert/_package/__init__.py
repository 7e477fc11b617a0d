"""convert-attn: pretrained multi-head attention checkpoints converted to GQA, MQA or MLA.

Importing this package makes its architectures known to the Auto classes of transformers, so that converted checkpoints
load without `trust_remote_code`. It imports neither torch nor transformers: public names are imported when they are
asked for, and where transformers is not imported yet, finders on `sys.meta_path` wait for its Auto classes and register
ours right after them, by name: a family's files are imported when its classes are asked for.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convert_attn import modeling
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.version import __version__

if TYPE_CHECKING:
    from convert_attn.convert.conversion.api import convert
    from convert_attn.convert.heal.run import heal
    from convert_attn.convert.inspection.inspection import inspect
    from convert_attn.convert.publish.push import Pushed, push
    from convert_attn.convert.verification.folder import verify
    from convert_attn.eval.run import evaluate

__all__ = [
    "ConvertAttnError",
    "Pushed",
    "UsageError",
    "__version__",
    "convert",
    "evaluate",
    "heal",
    "inspect",
    "push",
    "verify",
]

_HOMES = {
    "Pushed": "convert.publish.push",
    "evaluate": "eval.run",
    "heal": "convert.heal.run",
    "inspect": "convert.inspection.inspection",
    "push": "convert.publish.push",
    "verify": "convert.verification.folder",
}


def __getattr__(name: str) -> Any:
    """Give a public name, imported when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


class _Package(ModuleType):
    """`convert_attn.convert` is the function, although importing the room of that name would put a module there."""

    @property
    def convert(self) -> Any:
        return importlib.import_module(f"{__name__}.convert.conversion.api").convert

    @convert.setter
    def convert(self, value: Any) -> None:
        """The import system hands over the room, which `sys.modules` keeps."""


vars(sys.modules[__name__]).pop("convert", None)
sys.modules[__name__].__class__ = _Package
modeling.register_when_loaded()
