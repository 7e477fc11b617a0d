"""convert-attn: pretrained multi-head attention checkpoints converted to GQA, MQA or MLA.

Importing this package registers its architectures with the Auto classes of transformers, so that converted
checkpoints load without `trust_remote_code`.
"""

from convert_attn import modeling
from convert_attn.convert.api import convert
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.inspection import inspect
from convert_attn.convert.version import __version__

modeling.register()

__all__ = ["ConvertAttnError", "UsageError", "__version__", "convert", "inspect"]
