"""Which settings of a source's config.json its result has, when the class changes.

transformers fills in what a config.json leaves out, by class. So what both classes know by the same name is written
down with the value that the source's class gives it; what every config has (labels, the kind of problem, flags of the
output) and what no class knows is carried as it stands. A key that the source's class ignores and the result's reads
must not come alive: it is left out, and said.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from transformers import CONFIG_MAPPING
from transformers.cache_utils import DynamicCache
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.targets.base import Blueprint, Config, Target

# written anew for every result, or private to the process that saved them
_OWN = frozenset({"architectures", "auto_map", "convert_attn", "model_type", "transformers_version"})
# without a generation_config.json, generation reads these from the file and not from the class
_TOKENS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})
# not every class that reads these declares them
_SIZES = frozenset({"head_dim", "num_key_value_heads"})
# how the source's own queries and keys turn: a class with another kind of cache says it in its own keys
_ROTATION = ("rope_", "rotary_", "partial_rotary_factor")
# what a cache reads from any config, whether the class's attention does so or not
_CACHE_KEYS = ("sliding_window", "layer_types", "attention_chunk_size")


def _fields(config_class: type[PreTrainedConfig]) -> frozenset[str]:
    """Every name under which a config class takes a setting, but for those that all have."""
    own = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    return frozenset(own - {field.name for field in fields(PreTrainedConfig)})


def class_config(target: Target, blueprint: Blueprint, name: str) -> tuple[Config, tuple[str, ...]]:
    """Give a result's config.json as far as its class decides it, and sentences on what was left out.

    Args:
        name: of the checkpoint, for messages.

    Raises:
        ConvertAttnError: values that the source's class refuses.
    """
    own, source, source_type = target.configure(blueprint), blueprint.config, blueprint.arch.model_type
    result_type = target.becomes or source_type
    if result_type == source_type:
        config = {key: value for key, value in source.items() if key not in target.removed | {"auto_map"}}
        warnings: tuple[str, ...] = ()
    else:
        written = own.keys() | target.removed
        config, warnings = _carried(source, name, result_type, written, target.fresh_config)
    config |= own | {"model_type": result_type}
    misleading = _misleading(config, name, blueprint.sizes)
    return {key: value for key, value in config.items() if key not in misleading}, warnings + tuple(
        f"config.json has {key} {config[key]!r}, which the class's attention does not read and its cache, when it "
        "generates, would: it is left out"
        for key in misleading
    )


def _carried(
    source: Config, name: str, result_type: str, configured: Collection[str], fresh: bool
) -> tuple[Config, tuple[str, ...]]:
    """Settings for a result of another class, and a sentence for each key that could not be carried.

    Args:
        source: config.json.
        name: of the checkpoint, for messages.
        result_type: the result's model_type.
        configured: keys that the target writes or removes itself.
        fresh: leave out what only the source's class knows.

    Raises:
        ConvertAttnError: values the source's class refuses.
    """
    typed = typed_config(source, name)
    result_class = CONFIG_MAPPING[result_type]
    known, read = _fields(type(typed)), _fields(result_class)
    carried: Config = {}
    left: list[str] = []
    for key, value in source.items():
        if key in _OWN or (fresh and key.startswith("_")):
            continue
        if key in read - known - _SIZES and value is not None:
            left.append(key)
        elif key in configured or (fresh and key in known):
            continue
        elif not (fresh and key.startswith(_ROTATION)):
            carried["dtype" if fresh and key == "torch_dtype" else key] = value
    aliases = set(type(typed).attribute_map) | set(result_class.attribute_map)
    for key in sorted((known & read) - aliases - set(configured)):
        stated = key in source or key not in _TOKENS
        if (fresh and stated) or (key not in source and getattr(typed, key) != getattr(result_class(), key)):
            carried[key] = getattr(typed, key)
    return carried, tuple(
        f"config.json has {key} {source[key]!r}, which {type(typed).__name__} does not read and "
        f"{result_class.__name__} would: it is left out"
        for key in left
    )


def _misleading(config: Config, name: str, sizes: Geometry) -> tuple[str, ...]:
    """Keys by which a cache forgets tokens that the class's attention, by its masks, sees.

    transformers' caches read them from any config, so that a class which ignores them computes one thing on a whole
    text and another when it generates.
    """
    named = tuple(key for key in _CACHE_KEYS if config.get(key) is not None)
    try:
        layers = DynamicCache(config=typed_config(config, name)).layers if named else []
    except (ValueError, TypeError, KeyError, AttributeError):  # kinds of layers that no cache knows
        return named
    kept = [getattr(layer, "sliding_window", None) for layer in layers]
    windows = sizes.windows or (None,) * sizes.num_layers
    forgets = any(size is not None and window is None for size, window in zip(kept, windows, strict=False))
    return named if forgets else ()
