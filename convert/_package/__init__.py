"""convert-attn: pretrained multi-head attention checkpoints converted to GQA, MQA or MLA."""

from convert_attn.convert.version import __version__

__all__ = ["__version__"]
