"""The language model inside a larger one (one that sees or hears too): its config, and its place in the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.classes.base_model import base_class
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError

Config = dict[str, Any]
_OF_ALL = ("dtype", "torch_dtype")  # what a larger model's config says of its parts too


@dataclass(frozen=True)
class Within:
    """Where a language model's config is in that of the larger model.

    Attributes:
        key: the key that holds it, e.g. "text_config"; "" where its values stand among the larger model's own.
        config: with all values that its class fills in.
        whole: the larger model's.
    """

    key: str
    config: Config
    whole: Config


def language_model(raw: Config, name: str) -> Within | None:
    """Find the language model's config in a config.json, None where that is the language model's own.

    Args:
        raw: config.json.
        name: of the checkpoint, for messages.

    Raises:
        ConvertAttnError: values that the class refuses.
    """
    typed = typed_config(raw, name)
    parts = {key: getattr(typed, key, None) for key in typed.sub_configs}
    inner = None if getattr(typed, "is_encoder_decoder", False) else _text_config(typed)
    key = next((key for key, part in parts.items() if part is inner and part is not None), None)
    if key is None or inner is None:
        return None
    values = {name: value for name, value in inner.to_dict().items() if name not in ("architectures", "auto_map")}
    values |= {name: raw[name] for name in _OF_ALL if raw.get(name) and not values.get(name)}
    return Within(key if isinstance(raw.get(key), dict) else "", values | {"model_type": inner.model_type}, raw)


def language_config(raw: Config, name: str) -> Config:
    """Give the config of the language model of a config.json: a part of it, or all."""
    found = language_model(raw, name)
    return raw if found is None else found.config


def with_language_model(raw: Config, within: Within, changed: Config, removed: set[str]) -> Config:
    """Give a larger model's config.json with other values in its language model's.

    Args:
        changed: keys and values to be written.
        removed: keys to be left out.
    """
    inner = raw if not within.key else raw[within.key]
    written = {key: value for key, value in inner.items() if key not in removed} | changed
    return written if not within.key else raw | {within.key: written}


def place_of(model: nn.Module, name: str) -> str:
    """Give what names of the language model's base begin with in a larger model, e.g. "model.language_model.".

    Args:
        model: the larger model, on the meta device.
        name: of the checkpoint, for messages.

    Raises:
        ConvertAttnError: none of its modules is of the class that stands for the language model's config, or several.
    """
    config = _text_config(cast(Any, model).config)
    wanted = base_class(config)
    found = [path for path, module in model.named_modules() if type(module) is wanted]
    if len(found) != 1 or config is None:
        kind = getattr(wanted, "__name__", getattr(config, "model_type", "its config"))
        raise ConvertAttnError(
            f"{type(model).__name__} of '{name}' has {len(found)} modules of {kind}, the class of its language model "
            "by itself, where one is expected: which of its tensors are the language model's is not known"
        )
    return f"{found[0]}." if found[0] else ""


def _text_config(typed: PreTrainedConfig) -> PreTrainedConfig | None:
    try:
        inner: Any = typed.get_text_config(decoder=True)
    except (ValueError, AttributeError, KeyError):  # several decoders, or a config without its parts
        return None
    return inner if isinstance(inner, PreTrainedConfig) and inner is not typed else None
