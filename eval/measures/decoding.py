"""Calls with an attention cache, whatever the installed transformers and the model call it."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.modeling.transformers_api import CACHE_NAME, cache_argument


def with_cache(module: Any, cache: Any) -> dict[str, Any]:
    """Name a cache as the forward of this model, block or attention declares it: keyword arguments for a call."""
    return {cache_argument(module.forward) or CACHE_NAME: cache}


def cache_of(output: Any) -> Any:
    """Find the cache in what a model returned.

    Raises:
        ConvertAttnError: there is none.
    """
    found = next((value for value in output.values() if isinstance(value, Cache)), None)
    if found is None:
        raise ConvertAttnError(
            f"the model was asked for its attention cache and returned only {', '.join(output)}: its decoding cannot "
            "be measured"
        )
    return found


__all__ = ["cache_of", "with_cache"]
