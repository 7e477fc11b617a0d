"""What the installed transformers calls the attention cache, asked of its own functions when this file is imported.

A checkpoint and this code with it outlive many versions of transformers. The cache was `past_key_values` up to 5.23 and
is `cache` since 5.24: as an argument of every forward and mask function, and as a field of every output. A model that
takes such a name into **kwargs without knowing it decodes without a cache, and nothing says so. Therefore:

- the name is that of the argument, or field, which the installed function, or output class, declares as a Cache;
- the names of the past are understood beside it, and two different caches at once are refused;
- a cache under any other name is refused, by models, blocks and attention alike.

The paged cache of transformers' continuous batching is no Cache. Up to 5.23 it comes as `cache`, beside
`past_key_values`, and is for the attention function, which fills it. Since 5.24 it comes under the one name of all
caches, and the attention module fills it.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, get_args

import torch
from transformers import __version__
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.masking_utils import create_causal_mask


def cache_argument(function: Callable[..., Any]) -> str | None:
    """Find the argument of a function, or the field of an output class, that is declared as a Cache.

    Older blocks declare nothing: there it is what has the name that they have for it, `layer_past`.
    """
    for parameter in inspect.signature(function).parameters.values():
        declared = parameter.annotation
        if declared is inspect.Parameter.empty:
            found = parameter.name == "layer_past"
        elif isinstance(declared, str):
            found = re.search(r"Cache\b", declared) is not None
        else:
            found = any(isinstance(part, type) and issubclass(part, Cache) for part in (declared, *get_args(declared)))
        if found:
            return parameter.name
    return None


def _installed_name() -> str:
    name = cache_argument(create_causal_mask)
    if name is None:
        raise ImportError(
            f"transformers {__version__} declares no Cache among the arguments of create_causal_mask, by which this "
            "checkpoint's code finds out what the cache is called: use transformers 5.16 to 5.24, or newer code"
        )
    return name


CACHE_NAME = _installed_name()
CACHE_NAMES = tuple(dict.fromkeys((CACHE_NAME, "cache", "past_key_values")))


def takes_kv_cache(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a mask function or an output class one name for its cache, `kv_cache`, in every version."""
    name = cache_argument(function) or CACHE_NAME

    def call(*, kv_cache: Any, **arguments: Any) -> Any:
        return function(**{name: kv_cache}, **arguments)

    return call


def is_paged(cache: Any) -> bool:
    """Tell whether this is the cache of continuous batching, which holds K and V of every head in pages."""
    return isinstance(cache, PagedAttentionCache)


def has_pages(kwargs: dict[str, Any]) -> bool:
    """Tell whether keyword arguments bring the attention function a paged cache to fill."""
    return any(is_paged(kwargs.get(name)) for name in CACHE_NAMES)


def update_cache(
    cache: Any, key: torch.Tensor, value: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add new keys and values, [B, G, S, d], to the cache of a layer, and return all of them, [B, G, T, d].

    kwargs: what the attention function will be called with; a paged cache reads and writes it.
    """
    held: tuple[torch.Tensor, torch.Tensor]
    held = cache.update(key, value, layer_idx, **({"kwargs": kwargs} if is_paged(cache) else {}))
    return held


def take_cache(kwargs: dict[str, Any], names: tuple[str, ...] = CACHE_NAMES) -> Any:
    """Take the cache out of keyword arguments, by whichever of its names.

    A paged cache under another name than CACHE_NAME stays: it is for the attention function.

    Raises: ValueError for two caches, TypeError for a cache under a name that is none of these and for what is none.
    """
    found: Any = None
    for name in names:
        if name not in kwargs or (name != CACHE_NAME and is_paged(kwargs[name])):
            continue
        given = kwargs.pop(name)
        if isinstance(given, (tuple, list, dict, EncoderDecoderCache)):
            raise TypeError(f"{name} must be a Cache, such as DynamicCache, got {type(given).__name__}")
        if found is not None and given is not None and given is not found:
            raise ValueError(f"two different caches were given, one of them as {name}: give one, as {CACHE_NAME}")
        found = given if found is None else found
    for name, given in kwargs.items():
        if name not in names and _is_cache(given):
            raise TypeError(
                f"{name} holds a cache, but with transformers {__version__} this model knows the cache as "
                f"{' or '.join(names)} only: give it by such a name, or use a version of transformers that does"
            )
    return found


def _is_cache(given: Any) -> bool:
    """Tell whether this is a cache of any kind, holds one, or is one of the tuples of tensors that caches once were."""
    if isinstance(given, dict):
        return any(_is_cache(part) for part in given.values())
    if isinstance(given, (tuple, list)):  # K and V [B, G, T, d] of a layer, or a pair of them for each layer
        return any(_is_cache(part) or _is_layer(part) for part in given)
    return isinstance(given, (Cache, PagedAttentionCache))


def _is_layer(part: Any) -> bool:
    if isinstance(part, (tuple, list)):
        return any(torch.is_tensor(tensor) for tensor in part)
    return torch.is_tensor(part) and part.ndim >= 4


def answers_like(declared: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a forward take what the installed class's forward takes: the same positions, the cache by all its names.

    The cache reaches the decorated function by the name under which that declares it, all the rest by keyword. An
    argument that the installed class declares, that holds something and that the decorated function does not declare
    is refused.
    """
    signature = inspect.signature(declared)
    parameters = list(signature.parameters.values())[1:]
    positions = tuple(p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = cache_argument(declared) or CACHE_NAME
    names = tuple(dict.fromkeys((own, *CACHE_NAMES)))

    def decorate(forward: Callable[..., Any]) -> Callable[..., Any]:
        target = cache_argument(forward) or own
        unknown = tuple(set(positions) - set(inspect.signature(forward).parameters) - set(names))

        @functools.wraps(forward)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args) > len(positions):
                raise TypeError(f"{type(self).__name__} takes {len(positions)} arguments by position, got {len(args)}")
            for name, value in zip(positions, args, strict=False):
                if name in kwargs:
                    raise TypeError(f"{type(self).__name__} got {name} twice, by position and by name")
                kwargs[name] = value
            kv_cache = take_cache(kwargs, names)
            for name in unknown:
                if kwargs.get(name) is not None and not isinstance(kwargs[name], bool):
                    raise TypeError(
                        f"{type(self).__name__} has no use for {name}, which transformers {__version__} declares here: "
                        "leave it out"
                    )
            kwargs[target] = kv_cache
            return forward(self, **kwargs)

        wrapper.__signature__ = signature  # type: ignore[attr-defined]  # what generate() and trainers read
        return wrapper

    return decorate


__all__ = [
    "CACHE_NAME",
    "CACHE_NAMES",
    "answers_like",
    "cache_argument",
    "has_pages",
    "is_paged",
    "take_cache",
    "takes_kv_cache",
    "update_cache",
]
