"""The transformers class that a config.json names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from convert_attn import modeling
from convert_attn.convert.classes.base_model import base_class
from convert_attn.convert.classes.class_facts import typed_config

# of models that write a text and read more than text: their classes by model type
_OF_SEVERAL: dict[str, Mapping[str, str]] = {
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForMultimodalLM": getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}),
}
# whose logits are of the next token
PAIRS = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")  # a text for a text, or for a sound
WRITES = ("AutoModelForCausalLM", *PAIRS, *_OF_SEVERAL)
# of classes with heads; what the Hub calls them
_TASKS = {
    "MaskedLM": "fill-mask",
    "PreTraining": "feature-extraction",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "MultipleChoice": "multiple-choice",
}


# Auto classes of encoder-decoders: what transformers has for them, and what the Hub calls them
_TWO_STACKS: dict[str, tuple[Mapping[str, Any], str]] = {
    "AutoModelForSeq2SeqLM": (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "text2text-generation"),
    "AutoModelForSpeechSeq2Seq": (MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, "automatic-speech-recognition"),
}


def hub_task(auto_class: str) -> str:
    """Tell what the Hub calls what the class of an encoder, or of an encoder-decoder, is for."""
    if auto_class in _TWO_STACKS:
        return _TWO_STACKS[auto_class][1]
    return _TASKS.get(auto_class.removeprefix("AutoModelFor"), "feature-extraction")


def writes_alone(model_type: str) -> bool:
    """Tell whether a model type has a class of its own for its task, and is not only inside larger models."""
    two_stacks: list[Mapping[str, Any]] = [known for known, _ in _TWO_STACKS.values()]
    classes = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES, *two_stacks, modeling.FAMILIES)
    return any(model_type in known for known in classes)


def _generates(model_type: str) -> bool:
    """Whether a model type is of language models in the first place, and not of encoders."""
    if model_type in modeling.FAMILIES:
        return modeling.FAMILIES[model_type].causal
    return model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _of_two_stacks(model_type: str) -> tuple[str, str] | None:
    """The Auto class of an encoder-decoder that generates, and that class; None of other model types."""
    family = modeling.FAMILIES.get(model_type)
    for auto, (known, _) in _TWO_STACKS.items():
        if family is not None and auto in family.auto_models:
            return auto, family.class_name(auto)
        named = known.get(model_type)
        if isinstance(named, str):
            return auto, named
    return None


def auto_class_of(config: dict[str, Any]) -> str:
    """Give the Auto class that fits the `architectures` of a config.json."""
    names = config.get("architectures")
    two_stacks = _of_two_stacks(config["model_type"])
    if two_stacks is not None and (not names or names[0] == two_stacks[1]):
        return two_stacks[0]
    names = names or ["ForCausalLM" if _generates(config["model_type"]) else "Model"]
    for auto, classes in _OF_SEVERAL.items():
        known = classes.get(config["model_type"])
        if known is not None and names[0] in (known, "ForCausalLM"):
            return auto
    for task in _TASKS:
        if names[0].endswith(f"For{task}"):
            return f"AutoModelFor{task}"
    return "AutoModel" if names[0].endswith("Model") and "LMHead" not in names[0] else "AutoModelForCausalLM"


def attention_for(config: PreTrainedConfig, wanted: str | None) -> str | None:
    """Give the `attn_implementation` to load a class with: as wanted, or "eager" where the class has not got that.

    Some classes have no sdpa; and transformers up to 5.16 takes sdpa for classes that cap their scores, and forgets
    the cap.
    """
    kind = base_class(config)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    capped = bool(getattr(config, "attn_logit_softcapping", None))
    without = any(getattr(one, "_supports_sdpa", True) is False for one in kinds)
    return "eager" if capped or (wanted == "sdpa" and without) else wanted


def tied_names(config: dict[str, Any], name: str) -> set[frozenset[str]]:
    """Give the pairs of parameters that the class keeps as one; none where the class cannot be made."""
    modeling.register()
    try:
        with torch.device("meta"):
            model: Any = getattr(transformers, auto_class_of(config)).from_config(typed_config(config, name))
    except Exception:  # the class decides what it raises; a later check says what is wrong with it
        return set()
    base = f"{model.base_model_prefix}."
    pairs = {frozenset(pair) for pair in dict(getattr(model, "all_tied_weights_keys", None) or {}).items()}
    # a checkpoint of the bare base model has names without its prefix
    return pairs | {frozenset(tied.removeprefix(base) for tied in pair) for pair in pairs}
