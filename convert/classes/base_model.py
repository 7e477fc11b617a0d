"""The base model's class of a config: in one list of transformers, or in that of what larger models alone have."""

from __future__ import annotations

from typing import Any

from transformers import AutoModel, AutoModelForTextEncoding
from transformers.configuration_utils import PreTrainedConfig

_LISTS: tuple[Any, ...] = (AutoModel, AutoModelForTextEncoding)


def _list_of(config: PreTrainedConfig) -> Any:
    """The first list that has a class for a config; the first of all where none has."""
    return next((auto for auto in _LISTS if type(config) in auto._model_mapping), AutoModel)


def base_class(config: PreTrainedConfig | None) -> Any:
    """Give the base model's class for a config, or its classes; None where transformers has none."""
    return None if config is None else _list_of(config)._model_mapping.get(type(config), None)


def make_base(config: PreTrainedConfig, **options: Any) -> Any:
    """Make the base model of a config.

    Args:
        options: of `from_config`.

    Raises:
        Exception: whatever the class raises on a config that it refuses.
    """
    return _list_of(config).from_config(config, **options)
