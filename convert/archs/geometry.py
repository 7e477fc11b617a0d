"""The sizes of a checkpoint's attention, as the class that its config names really has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.block_facts import Added, Alibi, BlockFacts, Position, Rotary, alibi_slopes
from convert_attn.convert.classes.class_facts import ClassFacts, Rotation, class_facts, typed_config
from convert_attn.convert.errors import ConvertAttnError

_ADDED = Added()


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of every attention block.

    Attributes:
        context: longest input in tokens (`max_position_embeddings`).
        position: how attention knows where a token stands.
        num_kv_heads: of every layer; the most of any where layers differ.
        kv_heads: per layer, how many K/V heads it has; empty: `num_kv_heads`, in every layer.
        windows: per layer, how many tokens back a token sees, itself included, None: all; empty: all, in every layer.
        scales: per layer, what scores are multiplied by; empty: head_dim^-1/2.
        outside_biases: whether a block has biases outside its attention.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    position: Position = _ADDED
    kv_heads: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    scales: tuple[float, ...] = ()
    outside_biases: bool = False

    @property
    def kv_by_layer(self) -> tuple[int, ...]:
        """K/V heads of each layer."""
        return self.kv_heads or (self.num_kv_heads,) * self.num_layers

    @property
    def window(self) -> int | None:
        """The shortest window, where one is shorter than what the model can read at all."""
        return min((window for window in self.windows if window and window < self.context), default=None)

    @property
    def mixed_windows(self) -> bool:
        """Some layers see more tokens than others."""
        return len(set(self.windows)) > 1

    def scale(self, layer: int) -> float:
        """What a layer's scores are multiplied by."""
        return self.scales[layer] if self.scales else self.head_dim**-0.5

    @property
    def inv_freq(self) -> tuple[float, ...]:
        """Frequencies of the rotary planes in radians per token; empty without rotary position."""
        return self.position.inv_freq if isinstance(self.position, Rotary) else ()

    @property
    def rope_type(self) -> str:
        """The formula of the rotary frequencies, "default" without rotary position."""
        return self.position.formula if isinstance(self.position, Rotary) else "default"

    @property
    def rotary_scale(self) -> float:
        """What the turned numbers of queries and keys are multiplied by, besides."""
        return self.position.scale if isinstance(self.position, Rotary) else 1.0

    @property
    def turns(self) -> bool:
        """Whether queries and keys turn with the position."""
        return isinstance(self.position, Rotary)

    def block(self, layer: int) -> BlockFacts:
        """What a layer's attention is."""
        return BlockFacts(
            heads=self.num_heads,
            kv_heads=self.kv_by_layer[layer],
            head_dim=self.head_dim,
            hidden_size=self.hidden_size,
            scale=self.scale(layer),
            position=self.position,
            window=self.windows[layer] if self.windows else None,
        )


def facts_of(arch: Architecture, raw: dict[str, Any], name: str) -> ClassFacts:
    """What the class of a config.json is: see `class_facts`.

    Raises:
        ConvertAttnError: the class refuses the config, or is not what the architecture's file says.
    """
    facts = class_facts(raw, name, arch.block, arch.output.rpartition(".")[0])
    known = {f"{stem}.{kind}" for stem in arch.projections for kind in ("weight", "bias")}
    for layer in range(len(facts.modules)):
        own = facts.attention(layer)
        stem = arch.block.format(layer=layer)
        for path in own:
            if path.removeprefix(stem) not in known:
                raise ConvertAttnError(
                    f"{facts.name} with the config.json of '{name}' has '{path}' in its attention, which this tool "
                    f"does not know of model type '{arch.model_type}'; it cannot be converted"
                )
        for projection in arch.projections:
            if f"{stem}{projection}.weight" not in own:
                raise ConvertAttnError(
                    f"{facts.name} has no '{stem}{projection}.weight', which this tool expects of model type "
                    f"'{arch.model_type}'; the installed transformers is not one that it knows"
                )
        if _besides_heads(arch, facts, layer) != _besides_heads(arch, facts, 0):
            raise ConvertAttnError(
                f"{facts.name} with the config.json of '{name}' has layers whose attention differs in size (layer "
                f"{layer} from layer 0), which this tool cannot convert"
            )
    if bool(facts.rotation.inv_freq) != (arch.position == "rope"):
        has = "rotary position" if facts.rotation.inv_freq else "no rotary position"
        raise ConvertAttnError(
            f"{facts.name} with the config.json of '{name}' has {has}, which this tool does not expect of model type "
            f"'{arch.model_type}'"
        )
    return facts


def _besides_heads(arch: Architecture, facts: ClassFacts, layer: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's attention, the size of keys and values left out: it may be each layer's own."""
    stem = arch.block.format(layer=layer)
    shapes = {path.removeprefix(stem): shape for path, shape in facts.attention(layer).items()}
    heads = {f"{arch.qkv.roles[role]}.{kind}" for role in ("k", "v") for kind in ("weight", "bias")}
    return {path: () if path in heads else shape for path, shape in shapes.items()}


def class_biases(arch: Architecture, facts: ClassFacts) -> frozenset[str]:
    """Which of "q", "k", "v", "o" have a bias in the class."""
    block, names = arch.block.format(layer=0), arch.qkv.roles | {"o": arch.output}
    return frozenset(role for role, name in names.items() if f"{block}{name}.bias" in facts.parameters)


def _outside_biases(arch: Architecture, facts: ClassFacts) -> bool:
    block, attention = arch.block.format(layer=0), facts.attention(0)
    return any(path.startswith(block) and path.endswith(".bias") for path in facts.parameters.keys() - attention.keys())


def _rows(arch: Architecture, facts: ClassFacts, projection: str, layer: int = 0) -> tuple[int, int]:
    """Outputs and inputs of a projection of the class."""
    shape = facts.parameters[f"{arch.block.format(layer=layer)}{projection}.weight"]
    rows, columns = arch.row_shape(shape)
    return rows, columns


def _heads(arch: Architecture, facts: ClassFacts, heads: int, name: str, layer: int) -> tuple[int, int]:
    """Head size and K/V heads of a layer, by the shapes of the class's projections.

    Args:
        heads: query heads, as the config has them.

    Raises:
        ConvertAttnError: shapes that are no whole number of heads.
    """
    _, mixed = _rows(arch, facts, arch.output, layer)
    head_dim = facts.head_dim or mixed // heads
    rows = {stored: _rows(arch, facts, stored, layer)[0] for stored in arch.qkv.roles.values()}
    shared = arch.qkv.kv_heads(rows, heads, head_dim)
    whole = mixed == heads * head_dim and shared >= 1 and not shared % 1
    if not whole or arch.qkv.rows(heads, int(shared), head_dim) != rows:
        raise ConvertAttnError(
            f"{facts.name} with the config.json of '{name}' has queries of {mixed} numbers and keys of "
            f"{shared * head_dim:g}, which are not {heads} query heads and some K/V heads of {head_dim}"
        )
    return head_dim, int(shared)


def _check_numbers(arch: Architecture, config: PreTrainedConfig, name: str) -> None:
    """Sizes in the config are sizes.

    Raises:
        ConvertAttnError: naming one that is none.
    """
    heads = config.num_attention_heads
    kv_heads = getattr(config, arch.config_kv_heads, None) or heads if arch.config_kv_heads else heads
    for what, value in (
        ("num_attention_heads", heads),
        ("hidden_size", config.hidden_size),
        ("num_key_value_heads", kv_heads),
        ("num_hidden_layers", config.num_hidden_layers),
        ("max_position_embeddings", config.max_position_embeddings),
        ("head_dim", getattr(config, "head_dim", None) or 1),
        ("sliding_window", getattr(config, "sliding_window", None) or 1),
    ):
        if not isinstance(value, int) or value < 1:
            raise ConvertAttnError(f"config.json of '{name}' has {what} {value!r}, expected a positive number")
    if heads % kv_heads:
        raise ConvertAttnError(
            f"config.json of '{name}' has {heads} query heads and {kv_heads} K/V heads, expected a multiple"
        )
    if not getattr(config, "head_dim", None) and config.hidden_size % heads:
        raise ConvertAttnError(
            f"config.json of '{name}' has hidden_size {config.hidden_size} and {heads} query heads, expected a multiple"
        )


def geometry(arch: Architecture, raw: dict[str, Any], name: str) -> Geometry:
    """Sizes of the class that config.json names, with that config.

    Raises:
        ConvertAttnError: sizes that do not fit each other, or a class that this tool cannot follow.
    """
    config = typed_config(raw, name)
    _check_numbers(arch, config, name)
    facts = facts_of(arch, raw, name)
    heads, layers = config.num_attention_heads, range(config.num_hidden_layers)
    found = [_heads(arch, facts, heads, name, layer) for layer in layers]
    head_dim, kv_heads = found[0][0], tuple(shared for _, shared in found)
    rotation = facts.rotation
    if len(rotation.inv_freq) > head_dim // 2 or not all(math.isfinite(value) for value in rotation.inv_freq):
        raise ConvertAttnError(
            f"config.json of '{name}' has rope parameters {config.rope_parameters!r} that give no rotation: "
            f"{len(rotation.inv_freq)} frequencies for heads of {head_dim}, or values that are not finite"
        )
    return Geometry(
        hidden_size=_rows(arch, facts, arch.output)[0],
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=max(kv_heads),
        kv_heads=kv_heads if len(set(kv_heads)) > 1 else (),
        head_dim=head_dim,
        context=config.max_position_embeddings,
        position=_position(arch, rotation, heads),
        windows=facts.windows,
        scales=facts.scales,
        outside_biases=_outside_biases(arch, facts),
    )


def _position(arch: Architecture, rotation: Rotation, heads: int) -> Position:
    if arch.position == "rope":
        return Rotary(rotation.inv_freq, rotation.kind, rotation.scale)
    return Alibi(alibi_slopes(heads)) if arch.position == "alibi" else Added()
