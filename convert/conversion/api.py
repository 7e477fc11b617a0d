"""The same as the command line, from Python: `from convert_attn import convert, inspect`."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import CONFIG_MAPPING

from convert_attn.convert.archs import adopted, early
from convert_attn.convert.archs.cache_form import SharedHeads
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.checkpoint.writer import check_output
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.classes.remote_code import brings_classes, register_code
from convert_attn.convert.conversion.likeness import check_obeys, look_alike, read_as
from convert_attn.convert.conversion.run import Result, execute
from convert_attn.convert.errors import UsageError, check_options
from convert_attn.convert.inspection.for_engine import plan_for
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.planning.request import RequestOptions, To, request_of
from convert_attn.convert.progress import Progress, silent
from convert_attn.convert.publish.result_config import result_config
from convert_attn.convert.verification.stored import check_names

if TYPE_CHECKING:
    from typing_extensions import Unpack


def plan(
    model: str | Path,
    *,
    to: To,
    revision: str | None = None,
    subfolder: str | None = None,
    trust_remote_code: bool = False,
    output: str | Path | None = None,
    **options: Unpack[RequestOptions],
) -> Plan:
    """Check a conversion from config and headers only.

    Args:
        model: Hub id, local folder, or sample:NAME.
        to: "gqa", "mqa" or "mla"; "mixture-of-layers" and "latent-sequence" are experimental.
        revision: branch, tag or commit of a Hub model.
        subfolder: where below the model's folder or repository the checkpoint is.
        trust_remote_code: accept a source that names code of its own; the tokenizer's is carried, and run in the check.
        options: the other fields of `Request`; `engine` is --for.

    Raises:
        ConvertAttnError: whatever stands in the way, in one sentence.
    """
    folder, overwrite = None if output is None else Path(output), options.get("overwrite", False)
    if folder is not None and not _is_here(str(model)):
        check_output(folder, overwrite)  # before a download
    _check_device(options.get("device", "cpu"))
    source = Source.open(resolve(str(model), revision, subfolder))
    source = _with_facts(source, options.get("arch_like"), trust_remote_code)
    own_code = source.whole.get("auto_map") and source.whole["model_type"] not in _own_types()
    if own_code and not trust_remote_code:
        raise UsageError(
            f"'{model}' names code of its own (auto_map in config.json), so its weights may not mean what their "
            "names say; give --trust-remote-code to read them as its model_type all the same"
        )
    if source.tokenizer_code is not None and not trust_remote_code:
        raise UsageError(
            f"the tokenizer of '{model}' is made by code of its own ({source.tokenizer_code.where}), which has to go "
            "with the result and runs wherever that is loaded; read it, then give --trust-remote-code, or convert a "
            "copy of the folder without it"
        )
    made = plan_for(source, request_of(to, folder, trust_remote_code, options))
    if made.arch.model_type in adopted() and isinstance(made.form, SharedHeads):
        check_obeys(source, made.arch, max(made.form.groups))
    # what does not fit the result's class is known before any work is done
    config = typed_config(result_config(made), made.source.origin.name)
    check_names((output.info for output in made.outputs), config, made.source.auto_class)
    if folder is not None:  # what is wrong with the source matters more than what lies in the way of the result
        check_output(folder, overwrite)
        if source.origin.folder.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"output '{folder}' holds the source '{model}': a conversion never replaces its source")
    return made


def _with_facts(source: Source, like: str | None, trusted: bool) -> Source:
    """Give the source where there are facts of its model type, its own or those that it is to be read by.

    Raises:
        UsageError: there are none; saying what it is, and what its blocks compute as where they do as a family's.
    """
    if trusted and brings_classes(source.whole):
        register_code(source.origin.folder, source.whole, source.origin.name)
        source = Source.open(source.origin)
    if like is not None:
        read_as(source, like)
    model_type = source.config["model_type"]
    try:
        architecture(model_type)  # an unknown type is the first thing to say
    except UsageError:
        found = look_alike(source) if model_type in CONFIG_MAPPING and model_type not in early() else None
        if found is None:
            raise
        like, why_not = found
        instead = f", but {why_not}" if why_not else f": try --arch-like {like}"
        raise UsageError(
            f"model type '{model_type}' is one that convert-attn has no facts of; its blocks compute as {like}'s "
            f"do{instead}"
        ) from None
    return source


def _is_here(model: str) -> bool:
    """Whether nothing has to be downloaded."""
    try:
        return model.startswith("sample:") or Path(model).expanduser().is_dir()
    except RuntimeError:  # ~name of a user who does not exist
        return False


def _check_device(device: str) -> None:
    """Refuse a device that is not there or cannot compute in float64.

    Raises:
        UsageError: see above.
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"--device {device} cannot be used here: {reason}") from None


def _own_types() -> frozenset[str]:
    """Model types of this package, whose checkpoints carry our own code."""
    from convert_attn.convert.targets import targets

    return frozenset(t.becomes for t in targets() if t.becomes and t.layout == "custom")


def convert(
    model: str | Path,
    *,
    to: To,
    revision: str | None = None,
    subfolder: str | None = None,
    trust_remote_code: bool = False,
    output: str | Path | None = None,
    progress: Progress = silent,
    **options: Unpack[RequestOptions],
) -> Result:
    """Convert a checkpoint.

    Args:
        model, to, revision, subfolder, trust_remote_code, output, options: as for `plan`.
        progress: called with a stage's name, how much of it is done, and how much there is.

    Returns:
        the folder that was made.

    Raises:
        ConvertAttnError: nothing was written.
    """
    own = signature(convert).parameters.keys() - {"options"}
    check_options("convert", options, [*own, *RequestOptions.__annotations__])
    made = plan(
        model,
        to=to,
        revision=revision,
        subfolder=subfolder,
        trust_remote_code=trust_remote_code,
        output=output,
        **options,
    )
    return execute(made, progress)


__all__ = ["convert", "execute", "plan"]
