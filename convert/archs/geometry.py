"""The sizes of a checkpoint's attention, as the class that its config names really has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.block_facts import Added, BlockFacts, Position, QueryKeyNorm, Rotary
from convert_attn.convert.archs.class_reading import check_rotations, facts_of, norm_of, position_of
from convert_attn.convert.classes.class_facts import ClassFacts, typed_config
from convert_attn.convert.errors import ConvertAttnError

_ADDED = Added()


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of every attention block.

    Attributes:
        context: longest input in tokens (mostly `max_position_embeddings`).
        position: how attention knows where a token stands; where layers differ, that of the first that turns.
        positions: the same by layer, where layers differ; else empty.
        num_kv_heads: of every layer; the most of any where layers differ.
        kv_heads: per layer, how many K/V heads it has; empty: `num_kv_heads`, in every layer.
        softcaps: per layer, the size that scores stay below, None: any; empty: any, in every layer.
        norm: on queries and keys; where layers look at images (`seeing`), of those alone.
        sinks: every query head may look at something besides its tokens.
        windows: per layer, how many tokens back a token sees, itself included, None: all; empty: all, in every layer.
        scales: per layer, what scores are multiplied by; empty: head_dim^-1/2.
        outside_biases: whether a block has biases outside its attention.
        causal: a token sees itself and those before it; else every token sees all, and nothing is cached.
        attentions: sites of attention in a block, which are what is counted as layers here: with 2, each second one
            reads keys and values of what an encoder gives.
        seeing: layers whose keys and values are of images: a text alone passes them by.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    position: Position = _ADDED
    positions: tuple[Position, ...] = ()
    kv_heads: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    scales: tuple[float, ...] = ()
    softcaps: tuple[float | None, ...] = ()
    norm: QueryKeyNorm | None = None
    sinks: bool = False
    outside_biases: bool = False
    causal: bool = True
    attentions: int = 1
    seeing: tuple[int, ...] = ()

    def across(self, layer: int) -> bool:
        """Whether a layer, an attention site, reads keys and values of what an encoder gives, or of images."""
        return layer % self.attentions == 1 or layer in self.seeing

    @property
    def cached_of(self) -> str:
        """What the bytes of a cache are the bytes of."""
        if self.seeing:
            return "token of the text and one state of an image"
        return "token" if self.attentions == 1 else "token of the target and one of the source"

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
        """Tell what a layer's scores are multiplied by."""
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
        """Whether queries and keys turn with the position, in some layer."""
        return isinstance(self.position, Rotary)

    @property
    def turning_keys(self) -> int:
        """How many numbers of all keys of a layer turn: no rotary key need be larger."""
        turning = max((len(p.inv_freq) for p in (self.position, *self.positions) if isinstance(p, Rotary)), default=0)
        return min(self.kv_by_layer) * 2 * turning

    @property
    def key_sizes(self) -> int:
        """How many numbers a norm on keys divides a token's by: one for each K/V head, or for all; 0 without a norm."""
        if self.norm is None:
            return 0
        return 1 if self.norm.computes.together else self.num_kv_heads

    @property
    def softcapped(self) -> bool:
        """Whether scores of some layer stay below a size."""
        return any(self.softcaps)

    def head_order(self) -> Tensor:
        """Give [d] see `BlockFacts.head_order`; the same for every layer."""
        return replace(self.block(0), position=self.position).head_order()

    def block(self, layer: int) -> BlockFacts:
        """Tell what a layer's attention is."""
        across = self.across(layer)
        return BlockFacts(
            heads=self.num_heads,
            kv_heads=self.kv_by_layer[layer],
            head_dim=self.head_dim,
            hidden_size=self.hidden_size,
            scale=self.scale(layer),
            position=self.positions[layer] if self.positions else self.position,
            window=self.windows[layer] if self.windows else None,
            softcap=self.softcaps[layer] if self.softcaps else None,
            norm=None if self.seeing and layer not in self.seeing else self.norm,
            sinks=self.sinks,
            causal=self.causal and not across,
            across=across,
        )


def _outside_biases(arch: Architecture, facts: ClassFacts) -> bool:
    block, attention = arch.stem(0), {path for site in range(arch.attentions) for path in facts.attention(site)}
    return any(path.startswith(block) and path.endswith(".bias") for path in facts.parameters.keys() - attention)


def _rows(arch: Architecture, facts: ClassFacts, projection: str, layer: int = 0) -> tuple[int, int]:
    """Outputs and inputs of a projection of the class."""
    shape = facts.parameters[f"{arch.stem(layer)}{projection}.weight"]
    rows, columns = arch.row_shape(shape)
    return rows, columns


def _heads(arch: Architecture, facts: ClassFacts, heads: int, name: str, layer: int) -> tuple[int, int]:
    """Head size and K/V heads of a layer, by the shapes of the class's projections.

    Args:
        heads: query heads, as the config has them.

    Raises:
        ConvertAttnError: shapes that are no whole number of heads.
    """
    arch = arch.at(layer)
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
    heads = _query_heads(arch, config)
    kv_heads = getattr(config, arch.config_kv_heads, None) or heads if arch.config_kv_heads else heads
    for what, value in (
        (arch.cross.heads if arch.cross else "num_attention_heads", heads),
        ("hidden_size", config.hidden_size),
        ("num_key_value_heads", kv_heads),
        ("num_hidden_layers", config.num_hidden_layers),
        (arch.context_key, arch.longest(config)),
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


def _query_heads(arch: Architecture, config: PreTrainedConfig) -> Any:
    """Query heads of a layer, as the config has them."""
    return getattr(config, arch.cross.heads if arch.cross else "num_attention_heads")


def geometry(arch: Architecture, raw: dict[str, Any], name: str) -> Geometry:
    """Give sizes of the class that config.json names, with that config.

    Raises:
        ConvertAttnError: sizes that do not fit each other, or a class that this tool cannot follow.
    """
    config = typed_config(raw, name)
    arch = arch.of(config)
    _check_numbers(arch, config, name)
    facts = facts_of(arch, raw, name)
    heads, layers = _query_heads(arch, config), range(len(facts.modules))
    found = [_heads(arch, facts, heads, name, layer) for layer in layers]
    head_dim, kv_heads = found[0][0], tuple(shared for _, shared in found)
    check_rotations(facts, head_dim, config, name)
    positions = tuple(
        position_of(arch.at(layer), rotation, heads, config) for layer, rotation in enumerate(facts.rotations)
    )
    return Geometry(
        hidden_size=_rows(arch, facts, arch.output)[0],
        num_layers=len(layers),
        num_heads=heads,
        num_kv_heads=max(kv_heads),
        kv_heads=kv_heads if len(set(kv_heads)) > 1 else (),
        head_dim=head_dim,
        context=arch.longest(config) - arch.first_position,
        position=next((position for position in positions if isinstance(position, Rotary)), positions[0]),
        positions=positions if len(set(positions)) > 1 else (),
        windows=arch.windows(config) or facts.windows,
        scales=facts.scales,
        softcaps=facts.softcaps if any(facts.softcaps) else (),
        norm=norm_of(arch, facts, (head_dim, heads, max(kv_heads)), name),
        sinks=bool(arch.sinks) and f"{arch.stem(0)}{arch.sinks}" in facts.parameters,
        outside_biases=_outside_biases(arch, facts),
        causal=facts.causal,
        attentions=arch.attentions,
        seeing=tuple(sorted(arch.seeing_layers)),
    )
