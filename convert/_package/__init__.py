"""convert-attn: pretrained multi-head attention checkpoints converted to GQA, MQA or MLA.

Importing this package registers its architectures with the Auto classes of transformers, so that converted
checkpoints load without `trust_remote_code`.
"""

from typing import TYPE_CHECKING, Any

from convert_attn import modeling
from convert_attn.convert.conversion.api import convert
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.inspection.inspection import inspect
from convert_attn.convert.publish.push import Pushed, push
from convert_attn.convert.verification.folder import verify
from convert_attn.convert.version import __version__

modeling.register()

if TYPE_CHECKING:
    from convert_attn.convert.heal.run import heal
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


def __getattr__(name: str) -> Any:
    """`evaluate` and `heal`, imported when they are asked for: most uses need no measuring and no training."""
    if name == "evaluate":
        from convert_attn.eval.run import evaluate

        return evaluate
    if name == "heal":
        from convert_attn.convert.heal.run import heal

        return heal
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
