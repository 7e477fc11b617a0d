"""What a target is: the class that holds the result, and how config and tensors are written for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from convert_attn.convert.archs.attention_tensors import bias_shape, extra_shapes, join, weight_shapes
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentWeights

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Converted = AttentionWeights | LatentWeights


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What a target is told of a conversion.

    Attributes:
        arch: the source's facts.
        result_arch: the facts of the result's class where it is a known architecture, else the source's.
        config: the source's config.json.
        biases: which of "q", "k", "v", "o" have one in the source.
        inv_freq: MLA: per layer the frequencies of the rotary planes; zeros until they are fitted.
        slots: of a latent sequence.
    """

    arch: Architecture
    result_arch: Architecture
    config: Config
    sizes: Geometry
    form: Form
    biases: frozenset[str]
    inv_freq: tuple[tuple[float, ...], ...] = ()
    slots: int | None = None


def shared_shapes(blueprint: Blueprint, layer: int) -> Shapes:
    """Give shared heads keep the names of the result's architecture, with what the source has besides projections."""
    arch, form = blueprint.result_arch.at(layer), blueprint.form
    groups = form.groups if isinstance(form, SharedHeads) else blueprint.sizes.kv_by_layer
    weights = weight_shapes(arch, blueprint.sizes, groups[layer])
    biased = {arch.output: "o"} | {name: role for role, name in arch.qkv.roles.items()}
    shapes: Shapes = {f"{name}.weight": shape for name, shape in weights.items()}
    present = {name: shape for name, shape in weights.items() if biased[name] in blueprint.biases}
    shapes |= {f"{name}.bias": bias_shape(arch, shape) for name, shape in present.items()}
    return shapes | extra_shapes(arch, blueprint.sizes, groups[layer])


def shared_tensors(blueprint: Blueprint, converted: Converted, layer: int) -> dict[str, Tensor]:
    """Give shared heads in the layout of the result's architecture."""
    if not isinstance(converted, AttentionWeights):
        raise TypeError("a class with K/V heads cannot hold a latent")
    return join(blueprint.result_arch.at(layer), blueprint.sizes, converted)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What makes a target an experimental one: the weights stay, and it is asked for by a value of `--to` of its own.

    Attributes:
        to: that value.
        option: what is given besides, with a blank in front, where `to` alone is no experiment.
        label: names the result in a word or two.
        told: says what the result is, as the rest of a sentence.
        refused: says why a model of these sizes cannot be made one, "" where it can.
        tokens: how many tokens the cache holds at most; None: as many as there are.
        facts: float32 numbers that it holds of a token for each key/value head, or latent, besides what is cached of
            it anyway.
    """

    to: str
    option: str = ""
    label: Callable[[Blueprint], str]
    told: Callable[[Blueprint], str]
    refused: Callable[[Geometry], str] = lambda sizes: ""
    tokens: Callable[[Blueprint], int | None] = lambda blueprint: None
    facts: int = 0

    @property
    def asked(self) -> str:
        """How it is asked for."""
        return f"--to {self.to}{self.option}"

    def facts_by_layer(self, form: Form) -> list[int]:
        """Count the `facts` of a token in each layer."""
        entries = form.groups if isinstance(form, SharedHeads) else (1,) * len(form.ranks)
        return [self.facts * count for count in entries]

    def fact_bytes(self, form: Form) -> int:
        """Count the bytes that `facts` take of a token, in all layers."""
        return 4 * sum(self.facts_by_layer(form))

    def target(self, model_type: str, prefix: str, ending: str, **more: Any) -> Target:
        """Give the target of a family whose language model has a class of ours beside the stock one.

        Args:
            model_type: of the family; ours is <model_type>_<ending>.
            prefix: of its class names; ours have <prefix><Ending>.
            more: what else the target has.
        """
        own, kinds = f"{model_type}_{ending}", ("Model", "ForCausalLM")
        return Target(
            name=own,
            layout="custom",
            sources=frozenset({model_type}),
            becomes=own,
            classes={f"{prefix}{kind}": f"{prefix}{ending.title()}{kind}" for kind in kinds},
            experiment=self,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """One home for converted checkpoints.

    Attributes:
        name: for messages and the card.
        layout: "native" (a class that transformers ships) or "custom" (one of our modeling files).
        sources: model types it can hold; empty: every architecture that has a key for K/V heads.
        becomes: the result's model_type, None: the source's own.
        configure: the keys of config.json that change.
        takes: whether the class has the blocks of a source of these facts; of `sources` all, by default.
        holds: whether the class can have these sizes.
        classes: class name in `architectures` -> class name of the result; empty: the same class.
        by_layer: the options ("groups", "rank", "rope_dim") of which the class has a number for each layer.
        shapes: names (below the block) and shapes of a layer's attention tensors.
        tensors: (blueprint, converted weights, layer) -> the attention tensors by those names.
        form: what kind of cache it has.
        fresh_config: start from nothing instead of from the source's config.json.
        frequencies: MLA: rotary frequencies the class prescribes for all layers, None: free choice.
        removed: config keys the result's class does not know.
        unties: a head that is tied to the token embedding is written out.
        computes: MLA: what its attention does besides (`planning.sizes` has the words): "windows by layer", "soft cap".
        extra_latent: MLA: channels that the class caches per token and layer besides the form's.
        experiment: None: it is chosen by the form of its cache.
        zeros: names (below the base model) and shapes of what the class has besides, all zeros at the start.
    """

    name: str
    layout: Literal["native", "custom"]
    sources: frozenset[str]
    becomes: str | None
    configure: Callable[[Blueprint], Config]
    takes: Callable[[Architecture], bool] = lambda arch: True
    holds: Callable[[Geometry, Form], bool] = lambda sizes, form: True
    by_layer: frozenset[str] = frozenset()
    classes: Mapping[str, str] = field(default_factory=dict)
    shapes: Callable[[Blueprint, int], Shapes] = shared_shapes
    tensors: Callable[[Blueprint, Converted, int], dict[str, Tensor]] = shared_tensors
    form: type[SharedHeads] | type[LatentCache] = SharedHeads
    fresh_config: bool = False
    frequencies: Callable[[Blueprint], tuple[float, ...] | None] = lambda blueprint: None
    removed: frozenset[str] = frozenset()
    computes: frozenset[str] = frozenset()
    extra_latent: int = 0
    unties: bool = False
    experiment: Experiment | None = None
    zeros: Callable[[Blueprint], Shapes] = lambda blueprint: {}
