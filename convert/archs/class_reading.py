"""Facts of an architecture held against the class that config.json names: what the class has, in this tool's words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.block_facts import (
    Added,
    Alibi,
    Position,
    QueryKeyNorm,
    Relative,
    Rotary,
    alibi_slopes,
)
from convert_attn.convert.classes.class_facts import ClassFacts, Place, class_facts, typed_config
from convert_attn.convert.classes.rotation import Rotation
from convert_attn.convert.errors import ConvertAttnError


def facts_of(arch: Architecture, raw: dict[str, Any], name: str) -> ClassFacts:
    """Tell what the class of a config.json is: see `class_facts`.

    Raises:
        ConvertAttnError: the class refuses the config, or is not what the architecture's file says.
    """
    arch = arch.of(typed_config(raw, name))
    if 0 in arch.seeing_layers:
        raise ConvertAttnError(
            f"config.json of '{name}' has an attention on images in its first layer, whose cache its class takes for "
            "the text's: such a model cannot be converted"
        )
    facts = class_facts(raw, name, place_of(arch))
    for layer in range(len(facts.modules)):
        own, of_layer = facts.attention(layer), arch.at(layer)
        stem = arch.stem(layer)
        for path in own:
            if path.removeprefix(stem) not in of_layer.tensors | {f"{of_layer.table}.weight"}:
                raise ConvertAttnError(
                    f"{facts.name} with the config.json of '{name}' has '{path}' in its attention, which this tool "
                    f"does not know of model type '{arch.model_type}'; it cannot be converted"
                )
        for projection in of_layer.projections:
            if f"{stem}{projection}.weight" not in own:
                raise ConvertAttnError(
                    f"{facts.name} has no '{stem}{projection}.weight', which this tool expects of model type "
                    f"'{arch.model_type}'; the installed transformers is not one that it knows"
                )
        norm = f"{stem}{of_layer.norm.name}.weight" if of_layer.norm is not None and of_layer.norm.weighted else None
        if norm is not None and norm not in facts.parameters:
            raise ConvertAttnError(
                f"{facts.name} has no '{norm}', the norm in front of attention that this tool expects of model type "
                f"'{arch.model_type}'"
            )
        first = arch.first_like(layer)
        if _besides_heads(of_layer, facts, layer) != _besides_heads(of_layer, facts, first):
            raise ConvertAttnError(
                f"{facts.name} with the config.json of '{name}' has layers whose attention differs in size (layer "
                f"{layer} from layer {first}), which this tool cannot convert"
            )
    if facts.causal != arch.causal:
        sees = "only itself and those before it" if facts.causal else "all tokens"
        raise ConvertAttnError(
            f"in {facts.name} with the config.json of '{name}' a token sees {sees}, which this tool does not expect of "
            f"model type '{arch.model_type}'"
        )
    turning = any(rotation.inv_freq for rotation in facts.rotations)
    if turning != arch.turns:
        has = "rotary position" if turning else "no rotary position"
        raise ConvertAttnError(
            f"{facts.name} with the config.json of '{name}' has {has}, which this tool does not expect of model type "
            f"'{arch.model_type}'"
        )
    if arch.keys_from != "self":
        raise ConvertAttnError(
            f"{facts.name} has keys and values of another text than its queries, which are not converted"
        )
    bound: Any = raw
    for key in arch.clip.split("."):
        bound = bound.get(key) if isinstance(bound, dict) else None
    if bound is not None:
        raise ConvertAttnError(
            f"config.json of '{name}' has {arch.clip} {bound!r}: queries, keys and values that are cut off at "
            "a bound are not converted"
        )
    return facts


def _besides_heads(arch: Architecture, facts: ClassFacts, layer: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's attention, the size of keys and values left out: it may be each layer's own."""
    stem = arch.stem(layer)
    shapes = {path.removeprefix(stem): shape for path, shape in facts.attention(layer).items()}
    shapes.pop(f"{arch.table}.weight", None)
    heads = {f"{arch.qkv.roles[role]}.{kind}" for role in ("k", "v") for kind in ("weight", "bias")}
    return {path: () if path in heads else shape for path, shape in shapes.items()}


def place_of(arch: Architecture) -> Place:
    """Tell where the class has its attention, by the facts of its family."""
    sites = tuple(arch.at(site).parts for site in range(arch.attentions))
    of_images = [arch.at(layer).parts for layer in sorted(arch.seeing_layers)[:1]]
    return Place(
        block=arch.block,
        sites=sites,
        root=arch.scale == "root",
        stack=arch.stack,
        hands_on=arch.hands_on,
        seeing=arch.seeing_layers,
        seeing_sites=tuple(of_images),
        states=arch.seeing.states if arch.seeing is not None and of_images else "",
    )


def class_biases(arch: Architecture, facts: ClassFacts) -> frozenset[str]:
    """Tell which of "q", "k", "v", "o" have a bias in the class."""
    block, names = arch.stem(0), arch.qkv.roles | {"o": arch.output}
    return frozenset(role for role, name in names.items() if f"{block}{name}.bias" in facts.parameters)


def check_rotations(facts: ClassFacts, head_dim: int, config: PreTrainedConfig, name: str) -> None:
    """Every layer that turns has a whole number of planes, the same in all.

    Raises:
        ConvertAttnError: frequencies that turn nothing, or layers that turn other shares of a head.
    """
    turning = [rotation.inv_freq for rotation in facts.rotations if rotation.inv_freq]
    for inv_freq in turning:
        if len(inv_freq) > head_dim // 2 or not all(math.isfinite(value) for value in inv_freq):
            raise ConvertAttnError(
                f"config.json of '{name}' has rope parameters {config.rope_parameters!r} that give no rotation: "
                f"{len(inv_freq)} frequencies for heads of {head_dim}, or values that are not finite"
            )
    if len({len(inv_freq) for inv_freq in turning}) > 1:
        raise ConvertAttnError(f"{facts.name} turns other shares of a head in some layers, which cannot be converted")


def position_of(arch: Architecture, rotation: Rotation, heads: int, config: PreTrainedConfig) -> Position:
    """Tell how a layer's attention knows where a token stands."""
    if rotation.inv_freq:
        return Rotary(
            inv_freq=rotation.inv_freq,
            formula=rotation.kind,
            scale=rotation.scale,
            interleaved=arch.interleaved or rotation.pairs,
        )
    if arch.turns:
        return Added("none")
    if arch.position == "relative":
        return Relative(buckets=config.relative_attention_num_buckets, farthest=config.relative_attention_max_distance)
    return Alibi(alibi_slopes(heads), coarse=arch.coarse_slopes) if arch.position == "alibi" else Added()


def norm_of(arch: Architecture, facts: ClassFacts, heads: tuple[int, int, int], name: str) -> QueryKeyNorm | None:
    """Give the norms on queries and keys, where the class has them; of layers that look at images, where some do.

    Args:
        heads: head size, query heads and K/V heads.

    Raises:
        ConvertAttnError: one without the other, two that differ, or weights for no whole head.
    """
    layer = min(arch.seeing_layers, default=0)
    stem, arch = arch.stem(layer), arch.at(layer)
    module = arch.mixer
    head_dim, *counts = heads
    shapes = [facts.parameters.get(f"{stem}{own}.weight") for own in (arch.q_norm, arch.k_norm) if own]
    if not any(shapes):
        return None
    computes = [facts.norms.get(own.removeprefix(f"{module}.")) for own in (arch.q_norm, arch.k_norm)]
    query, first = shapes[0], computes[0]
    if query is not None and first is not None and first == computes[1]:
        flat = len(query) == 1 and query[0] != head_dim
        weights: Literal["shared", "own", "flat"] = "own" if len(query) == 2 else "flat" if flat else "shared"
        norm = QueryKeyNorm(replace(first, together=flat), weights)
        if shapes == [norm.shape(count, head_dim) for count in counts]:
            return norm
    raise ConvertAttnError(
        f"{facts.name} with the config.json of '{name}' norms its queries in another way than its keys, or in one that "
        "this tool does not know; it cannot be converted"
    )
