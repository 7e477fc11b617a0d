"""What a model type is: one of the known architectures, or what it is instead, by transformers' own lists."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import transformers
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from convert_attn.convert.archs import UNSUPPORTED, architectures, early
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.errors import UsageError
from convert_attn.convert.targets import convertible

_PREFIX, _SUFFIX = "MODEL_FOR_", "_MAPPING_NAMES"
_SPEECH = ("SPEECH_SEQ_2_SEQ", "RNNT", "TDT")
_SIGHT = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
_NO_TASK = ("PRETRAINING",)


def architecture(model_type: str) -> Architecture:
    """Give the facts of one model type.

    Raises:
        UsageError: it is none that can be converted; the sentence says what it is.
    """
    known = architectures()
    if model_type in known:
        return known[model_type]
    raise UsageError(f"model type '{model_type}' {_instead(model_type)}")


def _instead(model_type: str) -> str:
    """What a model type is that cannot be converted, as the rest of a sentence."""
    could = f"convertible are {', '.join(convertible())}"
    if model_type in early():
        return (
            f"needs transformers {early()[model_type]}: its class in {transformers.__version__} does not compute what "
            f"it says; {could}"
        )
    if model_type in UNSUPPORTED:
        return f"{UNSUPPORTED[model_type]}; {could}"
    if model_type not in CONFIG_MAPPING:
        near = get_close_matches(model_type, convertible(), n=1, cutoff=0.7)
        hint = f" (nearest: {near[0]})" if near else ""
        return f"is not known here, nor to transformers {transformers.__version__}; {could}{hint}"
    tasks = _tasks(model_type)
    if _is_encoder_decoder(model_type):
        what = "a speech-to-text model with an encoder and a decoder" if tasks & {*_SPEECH} else "an encoder-decoder"
        return f"is {what} whose attention convert-attn has no facts of; {could}"
    if tasks & {*_SIGHT}:
        return (
            "is a vision-language (multimodal) model, whose language model converts in its place where that is of a "
            f"convertible type; the one in this config.json is not; {could}"
        )
    if tasks & {*_SPEECH, "CTC"}:
        return f"is a speech model and no causal language model: it keeps no KV cache that could shrink; {could}"
    if _is_stateful(model_type):
        return (
            "is a state-space, recurrent or hybrid model: what it caches is a state of fixed size, in all or most of "
            f"its layers, and not keys and values; {could}"
        )
    if "MASKED_LM" in tasks:
        return f"is encoder-only, and an encoder whose attention convert-attn has no facts of; {could}"
    if "CAUSAL_LM" in tasks:
        return f"is a causal language model whose attention convert-attn has no facts of; {could}"
    named = ", ".join(sorted(task.lower().replace("_", " ") for task in tasks)) or "no task that transformers names"
    return f"is no causal language model (transformers has it for: {named}): it keeps no KV cache; {could}"


def _tasks(model_type: str) -> set[str]:
    """The tasks that transformers has a class of this type for: "CAUSAL_LM", "MASKED_LM", ..."""
    found = set()
    for name in dir(auto):
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX) and model_type in getattr(auto, name):
            found.add(name.removeprefix(_PREFIX).removesuffix(_SUFFIX))
    return found - {*_NO_TASK}


def _is_encoder_decoder(model_type: str) -> bool:
    """By the config class's default, which a composite class may set only when it is made."""
    try:
        kind: Any = CONFIG_MAPPING[model_type]
        found = bool(getattr(kind, "is_encoder_decoder", False)) or bool(kind().is_encoder_decoder)
    except Exception:  # a composite config wants its parts, a class may want what is not installed
        found = False
    return found or "SEQ_TO_SEQ_CAUSAL_LM" in _tasks(model_type)


def _is_stateful(model_type: str) -> bool:
    """By the mark that transformers gives classes whose cache is a state."""
    named = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) or auto.MODEL_MAPPING_NAMES.get(model_type)
    try:
        kind = getattr(transformers, named if isinstance(named, str) else (named or [""])[0])
    except Exception:  # whatever importing it needs
        return False
    return bool(getattr(kind, "_is_stateful", False))
