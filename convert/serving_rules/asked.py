"""What engines that run a class of transformers, or of ours, ask of it: read off the class itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM

from convert_attn import modeling
from convert_attn.convert.serving_rules.conditions import Condition, Config


@cache
def _base_class(model_type: str) -> Any:
    """The class of the base model; None where the installed transformers has none."""
    modeling.register()
    if model_type not in CONFIG_MAPPING:
        return None
    known: Any = AutoModel._model_mapping
    found = known.get(CONFIG_MAPPING[model_type], None)
    return found[0] if isinstance(found, tuple) else found


def keeps_its_attention(config: Config) -> bool:
    """Tell whether a class lets nobody put another attention in place of its own.

    It says so of itself (`_supports_attention_backend`); and where it adds ALiBi, ours refuses when it is run.
    """
    model_type = config["model_type"]
    known = _base_class(model_type)
    declared = known is not None and not known._supports_attention_backend
    return declared or (model_type in modeling.FAMILIES and bool(config.get("alibi")))


def named_apart(*prefixes: str) -> Condition:
    """Give a class whose base model's tensors begin with none of these words."""

    def applies(config: Config) -> bool:
        known = _base_class(config["model_type"])
        return known is not None and known.base_model_prefix not in prefixes

    return applies


@cache
def _head_has_bias(model_type: str) -> bool:
    if _base_class(model_type) is None:
        return False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))
    return model.get_output_embeddings().bias is not None


def biased_head(config: Config) -> bool:
    """Tell whether the map from hidden states to logits has a bias, in a family's language models."""
    return _head_has_bias(config["model_type"])
