"""What a config's own class makes of it: the model is built without weights, called on a few tokens, and looked at.

A config.json may say what its class never reads (a window, a share of the head that turns, biases), and a file may hold
tensors that its class has no place for. So nothing here is taken from either: sizes are those of the class's own
parameters, frequencies those of its rotary module, scales those of its attention modules, and windows are read off the
masks that it gives to its blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.classes.attention_call import BlockCall, EnoughError, handed_on, watch
from convert_attn.convert.classes.base_model import make_base
from convert_attn.convert.classes.norm_facts import norm_facts
from convert_attn.convert.classes.rotation import Rotation, frequencies, rotations
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.weights.head_norm import HeadNorm

_TOKENS = 8  # that the class is called on
_OTHERS = 5  # states of an encoder that a decoder is called on
_WINDOW = 3  # what a sliding window is set to for the call: shorter than the call, so that it shows


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a class has its attention.

    Attributes:
        block: prefix of a block's names in the base model, with {layer}.
        sites: of each attention of a block its module's name below the block, and the output projection's where it is
            not inside.
        root: where a module keeps no number `scaling`, scores are multiplied by the inverse root of a head's size, else
            1.
        stack: the module of the base model that has the blocks and is called with an encoder's states, "" where that
            is the base model.
        hands_on: see `CrossAttention`.
        seeing: numbers of blocks that have another attention, on states of images.
        seeing_sites: their `sites`.
        states: what the base model calls these states, "" where there are no such blocks.
    """

    block: str
    sites: tuple[tuple[str, ...], ...]
    root: bool = True
    stack: str = ""
    hands_on: tuple[int, ...] = ()
    seeing: frozenset[int] = frozenset()
    seeing_sites: tuple[tuple[str, ...], ...] = ()
    states: str = ""

    def sites_of(self, block: int) -> tuple[tuple[str, ...], ...]:
        """Give the sites of one block."""
        return self.seeing_sites if block in self.seeing else self.sites

    def others(self, width: int) -> dict[str, Tensor]:
        """Give what the stack is called with besides its tokens: states of size `width` of an encoder, or of images."""
        name = "encoder_hidden_states" if self.stack else self.states
        return {name: torch.zeros(1, _OTHERS, width)} if name else {}


@dataclass(frozen=True, kw_only=True)
class ClassFacts:
    """A base model's attention, as its class builds it from a config; a layer is an attention site.

    Attributes:
        name: of the class.
        parameters: shape of every parameter, by its name in the base model.
        buffers: names of its buffers.
        modules: names of the attention modules, block by block.
        apart: what belongs to the attention beside them, block by block: "" or the output projection.
        causal: a token sees itself and those before it; else every token sees all; of a block's first attention.
        scales: per layer, what scores are multiplied by.
        windows: per layer, how many tokens back a token sees, itself included; None: all.
        rotations: per layer, how queries and keys turn.
        softcaps: per layer, the size that scores stay below, None: any.
        norms: what norms inside the attention compute, by their names below it, of the first layer that has them.
        head_dim: size of a head, None where the class keeps no such number.
    """

    name: str
    parameters: Mapping[str, tuple[int, ...]]
    buffers: frozenset[str]
    modules: tuple[str, ...]
    apart: tuple[str, ...]
    causal: bool
    scales: tuple[float, ...]
    windows: tuple[int | None, ...]
    rotations: tuple[Rotation, ...]
    softcaps: tuple[float | None, ...]
    norms: Mapping[str, HeadNorm]
    head_dim: int | None

    def attention(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Give shapes of a layer's attention parameters, by their names in the base model."""
        stems = tuple(f"{part}." for part in (self.modules[layer], self.apart[layer]) if part)
        return {name: shape for name, shape in self.parameters.items() if name.startswith(stems)}


def typed_config(raw: dict[str, Any], name: str) -> PreTrainedConfig:
    """config.json through its transformers class, which fills in what the file leaves out.

    Raises:
        ConvertAttnError: values the class refuses.
    """
    # a copy: the class writes into the dicts it is given
    values = deepcopy({key: value for key, value in raw.items() if key not in ("model_type", "auto_map")})
    try:
        config = AutoConfig.for_model(raw["model_type"], **values)
    except Exception as error:  # the class decides what it raises: a ValueError, a TypeError, its own validation error
        raise ConvertAttnError(f"config.json of '{name}' is refused by transformers: {_words(error)}") from None
    if not isinstance(config, PreTrainedConfig):
        raise ConvertAttnError(f"config.json of '{name}' gives no config class")
    return config


def class_facts(raw: dict[str, Any], name: str, place: Place) -> ClassFacts:
    """Build the class of a config on the meta device, call it without its blocks, and say what was seen.

    Args:
        raw: config.json.
        name: the checkpoint's, for messages.
        place: where it has its attention.

    Raises:
        ConvertAttnError: the class refuses the config, has no such attention, or masks it in a way that is no window.
    """
    try:
        text = json.dumps(raw, sort_keys=True)
    except TypeError:  # not from a file: a config made in Python can hold a dtype
        return _class_facts(raw, name, place)
    return _cached(text, name, place)


@lru_cache(maxsize=32)
def _cached(text: str, name: str, place: Place) -> ClassFacts:
    return _class_facts(json.loads(text), name, place)


def _class_facts(raw: dict[str, Any], name: str, place: Place) -> ClassFacts:
    config = typed_config(raw, name)
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int):
        config.sliding_window = min(window, _WINDOW)
    model, sites = _empty_model(config, name), place.sites
    try:
        stems = [place.block.format(layer=layer).rstrip(".") for layer in range(_count(model, place, config))]
        named = [
            (f"{stem}.{first}", *(f"{stem}.{part}" for part in rest))
            for number, stem in enumerate(stems)
            for first, *rest in place.sites_of(number)
        ]
        modules, apart = (tuple((*parts, "")[n] for parts in named) for n in (0, 1))
        blocks = [model.get_submodule(stem) for stem in stems]
        attentions = [model.get_submodule(module) for module in modules]
        scales = tuple(_scale(module, place.root) for module in attentions)
    except (AttributeError, TypeError) as error:
        raise ConvertAttnError(
            f"{type(model).__name__} has no attention with a scale of its scores as this tool knows it: {_words(error)}"
        ) from None
    causal = _is_causal(model, attentions[:: len(sites)])
    of_blocks = _calls(model, blocks, place, name)
    calls = [call for call in of_blocks for _ in sites]
    model.requires_grad_(False)
    known = frequencies(model, calls)
    of_sites = [block for block in blocks for _ in sites]
    seen = [watch(model, *of_layer) for of_layer in zip(of_sites, attentions, calls, strict=True)]
    head_dim = getattr(attentions[0], "head_dim", None)
    return ClassFacts(
        name=type(model).__name__,
        parameters={path: tuple(parameter.shape) for path, parameter in model.named_parameters()},
        buffers=frozenset(path for path, _ in model.named_buffers()),
        modules=modules,
        apart=apart,
        causal=causal,
        scales=scales,
        windows=tuple(
            _seen(call.values, window, type(model).__name__, causal) if site == 0 else None
            for call in of_blocks
            for site in range(len(sites))
        ),
        rotations=rotations(model, known, calls, seen, name),
        softcaps=tuple(one.softcap for one in seen),
        norms=_norms(attentions),
        head_dim=head_dim if isinstance(head_dim, int) else None,
    )


def _count(model: nn.Module, place: Place, config: PreTrainedConfig) -> int:
    """How many blocks there are; a config that names one number for two stacks may mean the other one."""
    if not place.stack:
        return int(config.num_hidden_layers)
    blocks: Any = model.get_submodule(place.block.partition("{layer}")[0].rstrip("."))
    return len(blocks)


def _scale(attention: nn.Module, root: bool) -> float:
    names = ("scaling", "softmax_scale")
    known: Any = next((getattr(attention, name) for name in names if hasattr(attention, name)), None)
    if known is None:
        size: Any = attention.head_dim
        known = size**-0.5 if root else 1.0
    return float(known)


def _empty_model(config: PreTrainedConfig, name: str) -> nn.Module:
    try:
        with init_empty_weights(include_buffers=False):
            model: nn.Module = make_base(config, attn_implementation="eager", dtype=torch.float32)
    except Exception as error:  # the class decides what it raises
        raise ConvertAttnError(
            f"config.json of '{name}' is refused by its class in transformers: {_words(error)}"
        ) from None
    return model.eval()


def _calls(model: nn.Module, blocks: list[nn.Module], place: Place, name: str) -> list[BlockCall]:
    """What each block is called with, besides the states; neither weights nor blocks are used."""
    calls: list[BlockCall] = []

    def passing(last: bool) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append(BlockCall(args, kwargs, hidden_states.shape[1]))
            if last:
                raise EnoughError
            return handed_on(hidden_states, args, place.hands_on)

        return forward

    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        stand_in = None if id(module) in inside else _without_weights(module)
        if stand_in is not None:
            module.forward = stand_in
    for block in blocks:
        block.forward = passing(block is blocks[-1])
    try:
        with torch.no_grad():
            stack, ids = model.get_submodule(place.stack), torch.zeros(1, _TOKENS, dtype=torch.long)
            width = int(model.config.hidden_size)  # type: ignore[union-attr,arg-type]  # of transformers' models
            stack(input_ids=ids, use_cache=False, **place.others(width))
    except EnoughError:
        return calls
    except Exception as error:  # the class decides what it raises
        raise ConvertAttnError(
            f"{type(model).__name__} cannot be called with the config.json of '{name}': {_words(error)}"
        ) from None
    finally:
        for block in blocks:
            vars(block).pop("forward", None)  # the class's own shows again
    raise ConvertAttnError(f"{type(model).__name__} does not call the decoder blocks that it has")


def _is_causal(model: nn.Module, attentions: list[nn.Module]) -> bool:
    """Whether tokens see only those before them: what attention without a mask goes by, the same in all layers."""
    kinds = {bool(getattr(module, "is_causal", True)) for module in attentions}
    if len(kinds) > 1:
        raise _no_window(type(model).__name__)
    return kinds.pop()


def _seen(call: list[Any], window: object, name: str, causal: bool) -> int | None:
    """The window of one block; where tokens look both ways there is none, and a mask hides nothing."""
    if causal:
        return _window(call, window, name)
    if any(not bool((mask > -1).all() if mask.dtype != torch.bool else mask.all()) for mask in _masks(call)):
        raise _no_window(name)
    return None


def _window(call: list[Any], window: object, name: str) -> int | None:
    """The window of one block, by the mask it was given.

    Args:
        window: what the config says of it.
    """
    masks = _masks(call)
    offset = torch.arange(_TOKENS)[:, None] - torch.arange(_TOKENS)
    for mask in masks:
        seen = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > -1
        if not seen[0, 0]:  # a token sees itself: this mask says what is hidden
            seen = ~seen
        if torch.equal(seen, offset >= 0):
            return None
        if isinstance(window, int) and torch.equal(seen, (offset >= 0) & (offset < min(window, _WINDOW))):
            return window
    if not masks:
        raise ConvertAttnError(f"{name} gives its blocks no mask of the tokens they see, which this tool reads")
    raise _no_window(name)


def _without_weights(module: nn.Module) -> Callable[..., Tensor] | None:
    """What a module in front of the blocks does to zeros, None where it needs no weights for that."""
    if isinstance(module, nn.Embedding):
        # some are given the shape of the ids
        return lambda ids, *args, **kwargs: torch.zeros(*getattr(ids, "shape", ids), module.embedding_dim)
    if isinstance(module, nn.Linear):
        return lambda states: torch.zeros(*states.shape[:-1], module.out_features)
    if "Norm" in type(module).__name__:
        return lambda states: states
    return None


def _masks(call: list[Any]) -> list[Tensor]:
    """The masks [1, 1, T, T] among what a block was called with."""
    square = (_TOKENS, _TOKENS)
    return [value for value in call if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-2:] == square]


def _no_window(name: str) -> ConvertAttnError:
    return ConvertAttnError(
        f"{name}, with this config.json, lets tokens see others than those before them within one window: "
        "such attention cannot be converted"
    )


def _norms(attentions: list[nn.Module]) -> dict[str, HeadNorm]:
    """Of modules with a weight that are no projections, the first of each name."""
    found: dict[str, HeadNorm] = {}
    for path, module in (child for attention in attentions for child in attention.named_children()):
        is_norm = "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None
        if is_norm and path not in found:
            found[path] = norm_facts(module, path)
    return found


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
