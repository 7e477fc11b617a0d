"""What is needed to make a conversion again, and to say later what was made."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

from convert_attn.convert.archs.cache_form import numbers_of
from convert_attn.convert.checkpoint.shards import Weights
from convert_attn.convert.errors import UsageError
from convert_attn.convert.planning.plan import Plan

# where the result goes and how fast, not what it is
_NOT_REPEATED = frozenset({"output", "overwrite", "jobs"})


def command(plan: Plan) -> str:
    """The command line that makes the same again: every option that is not its default, no path of this machine."""
    origin, words = plan.source.origin, ["convert-attn", plan.source.origin.label]
    if origin.commit is not None:
        words += ["--revision", origin.commit]
    if origin.subfolder:
        words += ["--subfolder", origin.subfolder]
    for field in fields(plan.request):
        value = getattr(plan.request, field.name)
        if field.name in _NOT_REPEATED or value == field.default:
            continue
        option = field.metadata.get("option", field.name).replace("_", "-")
        words.append(f"--{'no-' if value is False else ''}{option}")
        if not isinstance(value, bool):
            words.append(numbers_of(value) if isinstance(value, tuple) else public(value))
    return shlex.join(words)


def public(value: object) -> str:
    """Give an option's value; of a file or folder here, or one that is to be made here, its name alone."""
    text = str(value)
    option, equals, path = text.partition("=") if text.startswith("--") else ("", "", text)
    here = path.startswith(("/", "~", "./", "../")) or ("/" in path and Path(path).exists())
    return option + equals + (Path(path).name if here else path)


def typed_command(words: Sequence[str]) -> str:
    """Join the words of a command line as they were typed, paths by their own names alone."""
    return shlex.join(["convert-attn", *map(public, words)])


def versions() -> dict[str, str]:
    """Tell what the arithmetic depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "numpy": str(numpy.__version__),
    }


def headers_sha256(weights: Weights) -> str:
    """SHA-256 of names, dtypes and shapes of all tensors: whether another checkpoint could be the same one."""
    digest = hashlib.sha256()
    for name in sorted(weights.infos):
        info = weights.infos[name]
        digest.update(f"{name} {info.dtype} {list(info.shape)}\n".encode())
    return digest.hexdigest()


def read_provenance(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json of a converted folder, and the block `convert_attn` in it.

    Raises:
        UsageError: this package did not make the folder.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    block = config.get("convert_attn") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(block, dict) or "to" not in block:
        raise UsageError(
            f"'{folder}' is no folder that convert-attn made (its config.json has no `convert_attn`): convert first"
        )
    return config, block


def solved_mlp(provenance: dict[str, Any], mlp_output: str | None) -> Callable[[str], bool]:
    """Tell which tensors outside attention a conversion has changed, by their names.

    Args:
        provenance: config.json's block `convert_attn`, {} where there is none.
        mlp_output: the projection that ends an MLP, as `Architecture` has it; None: none can have changed.
    """
    calibration = provenance.get("calibration")
    changed = mlp_output is not None and isinstance(calibration, dict) and calibration.get("refit") == "mlp"
    ends = (f".{mlp_output}.weight", f".{mlp_output}.bias")
    return lambda name: changed and name.endswith(ends)


def describe(provenance: dict[str, Any]) -> str:
    """Say what was converted to what, in a line: "gpt2 to GQA-4 (subspace)"."""
    form = provenance.get("form") or str(provenance["to"]).upper()
    return f"{provenance.get('source')} to {form} ({provenance.get('method')})"
