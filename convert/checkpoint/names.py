"""What is wrong with the names of a checkpoint in which the class finds no first block."""

from __future__ import annotations

import re

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.errors import ConvertAttnError, UsageError

# what wrappers put into names, and how they are taken off again
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning",
}
_SIGHT = re.compile(r"(^|\.)(language_model|text_model|llm|lm)\.")


def check_names_of_blocks(arch: Architecture, source: Source) -> None:
    """Check that the class finds its first block in a checkpoint.

    Raises:
        UsageError: the names are those of a wrapper, an adapter or a larger model.
        ConvertAttnError: there is no first block.
    """
    first = arch.stem(0) + arch.projections[0] + ".weight"
    if not source.names.stored(source.names.base + first):
        raise _misnamed(arch, list(source.weights.infos), source.origin.name, first)


def _misnamed(arch: Architecture, names: list[str], name: str, first: str) -> ConvertAttnError:
    expected = f"'{arch.base}{first}'"
    found = f"'{name}' has no tensor {expected}, which every {arch.model_type} checkpoint has"
    wrapped = next((tensor for tensor in names if re.search(r"(^|\.)(base_layer|lora_[AB])\.", tensor)), None)
    if wrapped is not None:
        return UsageError(
            f"{found}, but '{wrapped}': its layers are wrapped by PEFT; load it with peft, call `merge_and_unload()` "
            "and save that with `save_pretrained`"
        )
    for wrapper, maker in _WRAPPERS.items():
        inside = next((tensor for tensor in names if f".{wrapper}" in f".{tensor}"), None)
        if inside is not None and any(_without_wrappers(tensor).endswith(first) for tensor in names):
            return UsageError(
                f"{found}, but '{inside}': its names have '{wrapper}' of {maker} in them; save the model that was "
                f"wrapped (`model.{wrapper.rstrip('.')}.save_pretrained(...)`), or take '{wrapper}' out of the names"
            )
    other = next((tensor for tensor in names if tensor.endswith(f".{first}") or tensor == first), None)
    if other is not None:
        prefix = other.removesuffix(first)
        if prefix.startswith("base_model.model."):
            remedy = "they are PEFT's: save `model.get_base_model()`, or take 'base_model.model.' out of the names"
        elif _SIGHT.search(prefix):
            remedy = "it is the language model inside a larger model: save it alone with `save_pretrained`"
        else:
            remedy = f"rename them, or save the model with the class of its model_type ({arch.model_type})"
        return UsageError(
            f"{found}, but '{other}': its names begin with '{prefix}' where '{arch.base}' or nothing is expected; "
            f"{remedy}"
        )
    return ConvertAttnError(f"{found}; the checkpoint is incomplete or its model_type is wrong")


def _without_wrappers(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = f".{name}".replace(f".{wrapper}", ".").removeprefix(".")
    return name
