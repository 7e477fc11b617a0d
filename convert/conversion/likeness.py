"""Model types that there are no facts of, read as if they were of a family that there are: the self-check decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import transformers
from transformers import CONFIG_MAPPING

from convert_attn.convert.archs import adopt, adopted, architectures, forget
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.class_reading import facts_of
from convert_attn.convert.archs.geometry import geometry
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.classes.remote_code import brings_classes
from convert_attn.convert.errors import ConvertAttnError, UsageError, first_line
from convert_attn.convert.planning.own_tensors import check_attention
from convert_attn.convert.targets import convertible, targets
from convert_attn.convert.verification.folder import as_it_is
from convert_attn.convert.verification.source import check_source
from convert_attn.modeling import FAMILIES

_KV_HEADS = "num_key_value_heads"


def read_as(source: Source, like: str) -> None:
    """Take a checkpoint of an unknown model type for one of a family; who converts it checks that.

    Raises:
        UsageError: the type is known, the family is not, or the class is not that of the family.
    """
    model_type, known = source.config["model_type"], architectures()
    if like not in convertible():
        raise UsageError(f"--arch-like {like} is no family that is converted; choose one of {', '.join(convertible())}")
    if model_type in known and model_type not in adopted():
        raise UsageError(f"--arch-like {like}: there are facts of model type '{model_type}'; drop --arch-like")
    if model_type not in CONFIG_MAPPING:
        remedy = "; it brings classes of its own: read their code, then give --trust-remote-code"
        raise UsageError(
            f"model type '{model_type}' is not known to transformers {transformers.__version__}, so there is no class "
            f"that says what its weights compute{remedy if brings_classes(source.whole) else ''}"
        )
    try:
        _take(source, known[like])
    except ConvertAttnError as error:
        forget(model_type)
        raise UsageError(f"--arch-like {like}: '{source.origin.name}' is not like it: {error}") from None


def _take(source: Source, arch: Architecture) -> None:
    """Adopt the facts, where the class has what they say."""
    config = typed_config(source.config, source.origin.name)
    key = _KV_HEADS if hasattr(config, _KV_HEADS) else None
    try:
        own = adopt(source.config["model_type"], _seen(arch, key)).of(config)
        geometry(own, source.config, source.origin.name)
    except AttributeError as error:  # facts that are about a key of the config, which this one has not
        raise ConvertAttnError(f"its config lacks what that family's has: {first_line(error)}") from None
    check_attention(own, facts_of(own, source.config, source.origin.name), source)


def look_alike(source: Source) -> tuple[str, str] | None:
    """Name a family whose facts the class of an unknown model type passes the self-check under, None for none.

    Returns:
        its name, and why the class holds no fewer K/V heads all the same, "" where it does.

    Runs the attention of a few blocks, once for each kind of facts whose names the checkpoint has.
    """
    for name, arch in _kinds():
        try:
            first = f"{arch.block.format(layer=0)}{arch.projections[0]}.weight"
            if not source.names.stored(source.names.base + first):
                continue
            _take(source, arch)
            check_source(as_it_is(source))
        except Exception:  # what the class raises under facts that are not its own; only a hint is lost
            continue
        else:
            return name, _why_not(source)
        finally:
            forget(source.config["model_type"])
    return None


def _why_not(source: Source) -> str:
    try:
        check_obeys(source, adopted()[source.config["model_type"]], 1)
    except UsageError as error:
        return str(error)
    return ""


def _kinds() -> Iterator[tuple[str, Architecture]]:
    """Facts that differ in what the check sees, those of most families first, by the name that most targets hold."""
    known, alike = architectures(), list[tuple[Architecture, list[str]]]()
    for name in (name for name in convertible() if name not in FAMILIES and name not in adopted()):
        facts = replace(_seen(known[name], None), model_type="", base="", legacy_config={}, unread=(), buffers=())
        facts = replace(facts, since="0")
        same = next((names for other, names in alike if other == facts), None)
        if same is None:
            alike.append((facts, [name]))
        else:
            same.append(name)
    homes = Counter(source for target in targets() for source in target.sources)
    for _, names in sorted(alike, key=lambda kind: -len(kind[1])):
        name = min(names, key=lambda name: (-homes[name], len(name), name))
        yield name, known[name]


def _seen(arch: Architecture, key: str | None) -> Architecture:
    """Facts without what the check does not see: how the outputs of attention and MLP are joined to the stream.

    Args:
        key: the config key that holds the number of K/V heads.
    """
    return replace(arch, config_kv_heads=key, mlp_output=None, scaled_residual=True)


def check_obeys(source: Source, arch: Architecture, groups: int) -> None:
    """Check that a class makes as many K/V heads as its config says.

    Args:
        groups: how many the result is to have, in every layer.

    Raises:
        UsageError: it does not, or its config has no number for them.
    """
    model_type = source.config["model_type"]
    if arch.config_kv_heads is None:
        raise UsageError(
            f"the config of model type '{model_type}' has no {_KV_HEADS}: its class has a key and a value for every "
            "query head, and there is no other for it"
        )
    config = source.config | {_KV_HEADS: groups}
    try:
        found = set(geometry(arch, config, source.origin.name).kv_by_layer)
    except ConvertAttnError as error:
        raise UsageError(f"the class of '{model_type}' cannot be made with {groups} K/V heads: {error}") from None
    if found != {groups}:
        raise UsageError(
            f"the class of '{model_type}' does not obey {_KV_HEADS}: with {groups} in its config it has "
            f"{max(found)} K/V heads, so that it cannot hold fewer"
        )
