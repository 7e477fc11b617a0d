"""config.json of the result, and the files beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import transformers

from convert_attn import modeling
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import SharedHeads, told
from convert_attn.convert.checkpoint.files import own_file, read_json
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.checkpoint.tokenizer_code import SETTINGS as TOKENIZER_SETTINGS
from convert_attn.convert.checkpoint.tokenizer_code import TokenizerCode, json_object
from convert_attn.convert.classes.language_model import with_language_model
from convert_attn.convert.errors import UsageError
from convert_attn.convert.fitting.made import UNMEASURED, Made
from convert_attn.convert.planning.class_config import class_config
from convert_attn.convert.planning.plan import Plan, result_classes
from convert_attn.convert.planning.provenance import command, headers_sha256, versions
from convert_attn.convert.planning.request import DTYPE_OPTIONS
from convert_attn.convert.publish.card import header, write_card
from convert_attn.convert.publish.derived import settle
from convert_attn.convert.targets.base import Blueprint
from convert_attn.convert.text.windows import AUTO
from convert_attn.convert.version import __version__


def result_config(plan: Plan, blueprint: Blueprint | None = None, made: Made = UNMEASURED) -> dict[str, Any]:
    """Give the source's config.json with the keys that the conversion changes; everything else stays as it was.

    Args:
        blueprint: the plan's own, or that with what the fit has found.
        made: what was found on the way.
    """
    source = plan.source.whole
    config = _changed(plan, blueprint or plan.blueprint)
    config["architectures"] = result_classes(plan.target, plan.source)
    if plan.request.dtype in DTYPE_OPTIONS:
        # transformers 4 called it torch_dtype
        named = [key for key in ("dtype", "torch_dtype") if key in source] or ["dtype"]
        config |= dict.fromkeys(named, plan.request.dtype)
    if plan.source.class_code():
        config["auto_map"] = source["auto_map"]
    if plan.target.layout == "custom":
        config["auto_map"] = modeling.auto_map(plan.result_type)
    config["transformers_version"] = transformers.__version__
    if plan.target.form is SharedHeads:
        within = plan.source.within
        inner = config if within is None or not within.key else config[within.key]
        inner |= legacy_keys(plan.arch, inner)
    config["convert_attn"] = provenance(plan, made)
    return config


def _changed(plan: Plan, blueprint: Blueprint) -> dict[str, Any]:
    """The source's config.json with what the class of the result decides; inside a larger model's the part that is it.

    There the file keeps what it leaves out: only what is another value is written.
    """
    source = plan.source
    config, _ = class_config(plan.target, blueprint, source.origin.name)
    if source.within is None:
        return config
    before, own = source.within.config, plan.target.configure(blueprint)
    changed = {key: value for key, value in config.items() if key in own or before.get(key) != value}
    changed = {key: value for key, value in changed.items() if key != "model_type"}
    if plan.request.dtype in DTYPE_OPTIONS:
        inner = source.whole.get(source.within.key, {})
        changed |= dict.fromkeys((key for key in ("dtype", "torch_dtype") if inner.get(key)), plan.request.dtype)
    return with_language_model(source.whole, source.within, changed, before.keys() - config.keys())


def legacy_keys(arch: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """Give keys that older readers need and transformers 5 no longer writes (they would silently use a default)."""
    found: dict[str, Any] = {}
    for old, path in arch.legacy_config.items():
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if old not in config and value is not None:
            found[old] = value
    scaling = config.get("rope_parameters")
    if isinstance(scaling, dict) and scaling.get("rope_type", "default") != "default":
        found.setdefault("rope_scaling", config.get("rope_scaling") or scaling)
    return found


def provenance(plan: Plan, made: Made = UNMEASURED) -> dict[str, Any]:
    """Tell what is needed to repeat the conversion, kept in config.json under `convert_attn`."""
    return {
        "version": __version__,
        "source": plan.source.origin.label,
        "source_subfolder": plan.source.origin.subfolder or None,
        "source_commit": plan.source.origin.commit,
        "source_headers_sha256": headers_sha256(plan.source.weights),
        "source_model_type": plan.arch.model_type,
        **({} if plan.request.arch_like is None else {"arch_like": plan.request.arch_like}),
        **({} if plan.source.within is None else {"inside": plan.source.whole["model_type"]}),
        **({} if plan.unchanged or not plan.geometry.seeing else {"unmeasured_layers": [*plan.geometry.seeing]}),
        "source_num_key_value_heads": told(plan.geometry.kv_by_layer),
        "to": plan.request.to,
        "form": plan.label,
        **({"experimental": plan.experimental} if plan.experimental else {}),
        **gained(plan),
        "method": plan.method.name,
        **plan.form.settings(),
        "seed": plan.request.seed,
        "calibration": calibration(plan, made.tokens),
        "quality": made.quality,
        "command": command(plan),
        "versions": versions(),
    }


def gained(plan: Plan) -> dict[str, Any]:
    """Tell what becomes less, before and after: the cache per token; of an encoder, which has none, its parameters."""
    if plan.geometry.causal:
        cache: dict[str, Any] = {"dtype": plan.cache_dtype, "bytes_per_token": [*plan.cache_bytes]}
        if plan.most_tokens is not None:
            cache["most_tokens"] = plan.most_tokens
        return {"cache": cache} if plan.cached_of == "token" else {"cache": cache, "cache_of": plan.cached_of}
    return {"cache": None, "parameters": [*plan.parameters]}


def calibration(plan: Plan, tokens: int | None) -> dict[str, Any] | None:
    """Tell what text was used and how, None where there was none.

    Args:
        tokens: of it; None: it has not been read yet.
    """
    text = plan.text
    if text is None or (tokens == 0 and plan.request.calibration == AUTO):
        return None
    # a file's own name, never the path to it
    refit = "mlp" if plan.refit_mlp else plan.refit
    return {"text": Path(text).name if Path(text).exists() else text, "tokens": tokens or 0, "refit": refit}


def _carry(source: Path, target: Path) -> None:
    """Copy a side file; of JSON without `auto_map`.

    That key names code, of other repositories too, which would run when the result is loaded as its card says.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    if target.suffix != ".json":
        return
    try:
        content = read_json(target)
    except (ValueError, RecursionError):  # not JSON: nothing will read it as that
        return
    if isinstance(content, dict) and content.pop("auto_map", None) is not None:
        target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def carry_files(source: Source, result_type: str, folder: Path) -> None:
    """Tokenizer and the like from a source, and our modeling code where the result's class is ours.

    Code that the tokenizer is made by goes with it: whoever does not trust it is to refuse the source before.

    Raises:
        UsageError: a link out of the source, or code of the tokenizer that has the name of ours.
    """
    for name in source.side_files():
        _carry(source.origin.folder / name, folder / name)
    for name in source.class_code():
        shutil.copyfile(own_file(source.origin.folder, name), folder / name)
    if code := source.tokenizer_code:
        _carry_tokenizer_code(source.origin.folder, code, folder)
    for path in modeling.source_files(result_type) if result_type in modeling.FAMILIES else ():
        if (folder / path.name).exists():
            raise UsageError(f"the tokenizer's code in {source.origin.folder} has {path.name}, which the result needs")
        shutil.copyfile(path, folder / path.name)


def _carry_tokenizer_code(source: Path, code: TokenizerCode, folder: Path) -> None:
    """The tokenizer's Python files, and its entry of `auto_map` where transformers looks for it first."""
    for name in code.files:
        shutil.copyfile(source / name, folder / name)
    settings = json_object(folder / TOKENIZER_SETTINGS) | {"auto_map": {"AutoTokenizer": code.reference}}
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / TOKENIZER_SETTINGS).write_text(text, encoding="utf-8")


def write_side_files(plan: Plan, folder: Path, blueprint: Blueprint, made: Made = UNMEASURED) -> tuple[str, ...]:
    """config.json, tokenizer and the like, modeling code where the class is ours, and the model card.

    Returns:
        sentences on what is not as in the source.
    """
    carry_files(plan.source, plan.result_type, folder)
    config = result_config(plan, blueprint, made)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    card = write_card(header(plan), config, plan.output.absolute().name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    origin = plan.source.origin
    return settle(origin.folder, origin.name if origin.commit else str(origin.folder), folder)
