"""The class of a config's base model: by transformers' list, or by its name where only a larger model makes it."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig


def base_class(config: PreTrainedConfig | None) -> Any:
    """Give the base model's class for a config, or its classes; None where transformers has none.

    A class that is in no list is called as its config is, with "Model" in the place of "Config".
    """
    if config is None:
        return None
    known: Any = AutoModel._model_mapping
    listed = known.get(type(config), None)
    if listed is not None:
        return listed
    named: Any = getattr(transformers, f"{type(config).__name__.removesuffix('Config')}Model", None)
    return named if getattr(named, "config_class", None) is type(config) else None


def make_base(config: PreTrainedConfig, **options: Any) -> Any:
    """Make the base model of a config.

    Args:
        options: of `from_config`.

    Raises:
        Exception: whatever the class raises on a config that it refuses.
    """
    unlisted = None if type(config) in AutoModel._model_mapping else base_class(config)
    make = AutoModel.from_config if unlisted is None else unlisted._from_config
    return make(config, **options)
