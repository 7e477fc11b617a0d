"""A whole language model from a checkpoint, as its tensors are, or one sentence why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.checkpoint.quantised import without_leftovers
from convert_attn.convert.classes.auto_classes import attention_for
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, first_line
from convert_attn.convert.progress import no_bars


def load_language_model(
    where: str | Path,
    name: str,
    *,
    dtype: torch.dtype | str,
    commit: str | None = None,
    trust_remote_code: bool = False,
    attention: str | None = None,
    auto_class: str = "AutoModelForCausalLM",
) -> Any:
    """Load a model, in evaluation mode.

    Args:
        where: folder, or Hub id with its commit.
        name: for messages.
        dtype: of its parameters; "auto": as stored.
        attention: `attn_implementation`, None: transformers' choice.
        auto_class: of transformers, which loads it.

    Raises:
        ConvertAttnError: its class raises whatever it may, or would begin with random numbers for want of tensors.
        MemoryError, torch.OutOfMemoryError: it does not fit.
    """
    load: Any = getattr(transformers, auto_class).from_pretrained
    try:
        with no_bars():
            config = _plain_config(where, name, commit, trust_remote_code)
            fitting = attention_for(config, attention)
            chosen = {} if fitting is None else {"attn_implementation": fitting}
            model, info = load(
                where,
                config=config,
                revision=commit,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **chosen,
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the class decides what it raises, and what has to be installed for it
        raise ConvertAttnError(f"'{name}' cannot be loaded: {first_line(error)}") from None
    parameters = {key for key, _ in model.named_parameters()}
    if missing := sorted(parameters.intersection(info["missing_keys"])):
        raise ConvertAttnError(
            f"'{name}' has no '{missing[0]}' ({len(missing)} of its parameters are missing), for which transformers "
            "would take random numbers: its tensors have other names than its class, or it is incomplete"
        )
    return model.eval()


def _plain_config(where: str | Path, name: str, commit: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    """The config without settings of quantisation, which transformers would apply to plain weights."""
    raw, _ = PreTrainedConfig.get_config_dict(where, revision=commit)
    plain, leftovers = without_leftovers(raw)
    if leftovers and not (trust_remote_code and "auto_map" in raw):
        return typed_config(plain, name)
    config: Any = AutoConfig.from_pretrained(where, revision=commit, trust_remote_code=trust_remote_code)
    for key in leftovers:
        if hasattr(config, key):  # of code of its own only the keys of the config itself are known
            delattr(config, key)
    return cast(PreTrainedConfig, config)
