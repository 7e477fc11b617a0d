"""Classes that a checkpoint brings as code of its own, made known to transformers' Auto classes of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from convert_attn.convert.errors import ConvertAttnError, first_line

_CONFIG, _BASE = "AutoConfig", "AutoModel"


def brings_classes(raw: dict[str, Any]) -> bool:
    """Tell whether a config.json names a config class of its own for a model type that transformers does not know."""
    return raw["model_type"] not in CONFIG_MAPPING and _CONFIG in (raw.get("auto_map") or {})


def register_code(folder: Path, raw: dict[str, Any], name: str) -> None:
    """Run a checkpoint's code and register its classes: the caller has asked whether it is trusted.

    Args:
        folder: the checkpoint's.
        raw: config.json, with `auto_map`.
        name: for messages.

    Raises:
        ConvertAttnError: the code is in another repository, or does not run here.
    """
    references: dict[str, str] = {key: ref for key, ref in raw["auto_map"].items() if isinstance(ref, str)}
    foreign = next((ref for ref in references.values() if "--" in ref), None)
    if foreign is not None:
        raise ConvertAttnError(
            f"'{name}' takes its classes from another repository ('{foreign}' in auto_map): download that, and put its "
            "*.py files and their names beside the weights"
        )
    try:
        config: Any = get_class_from_dynamic_module(references[_CONFIG], str(folder))
        AutoConfig.register(raw["model_type"], config, exist_ok=True)
        autos = [key for key in references if key.startswith(_BASE) and hasattr(transformers, key)]
        for auto in autos:
            kind: Any = get_class_from_dynamic_module(references[auto], str(folder))
            getattr(transformers, auto).register(config, kind, exist_ok=True)
        if autos and _BASE not in autos:
            with torch.device("meta"):
                values = {key: value for key, value in raw.items() if key not in ("auto_map", "model_type")}
                model: Any = getattr(transformers, autos[0]).from_config(config(**values))
            AutoModel.register(config, type(model.base_model), exist_ok=True)
    except Exception as error:  # the code of others
        raise ConvertAttnError(
            f"the code of '{name}' does not run in transformers {transformers.__version__}: {first_line(error)}"
        ) from None
