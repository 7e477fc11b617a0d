"""An architecture as facts: where the attention tensors are and how they are laid out. No code per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.archs.packings import Packing


@dataclass(frozen=True)
class Norm:
    """The norm in front of the attention block.

    Attributes:
        name: below the block.
        gain_offset: what the class adds to the stored weight (Gemma stores gain - 1).
        weighted: it has a weight; else it has a bias neither (OLMo).
    """

    name: str
    gain_offset: float = 0.0
    weighted: bool = True


@dataclass(frozen=True)
class Variant:
    """Facts that are others where config.json says so.

    Attributes:
        where: config keys, with the values that each of them may have for that.
        facts: attributes of an `Architecture`, by name.
    """

    where: Mapping[str, tuple[Any, ...]]
    facts: Mapping[str, Any]

    def meets(self, config: PreTrainedConfig) -> bool:
        """Tell whether a config says so."""
        return all(getattr(config, key, None) in values for key, values in self.where.items())


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """The second attention of a decoder's blocks, whose keys and values come from what an encoder gives.

    Names are below the block where nothing else is said.

    Attributes:
        stack, encoder: both stacks, below the base model; each can be called by itself.
        qkv, output, norm: as of `Architecture`, of this attention.
        post_norm: that norm is behind the self-attention, and what it gives is the residual stream.
        encoder_norm: the norm, below the base model, whose output the encoder gives; None where a block gives it.
        layers, heads: the config keys of how many blocks the decoder has, and query heads.
        hands_on: which arguments of a block, the states being number 0, it gives back beside the states.
        reads: what the encoder is given.
    """

    stack: str = "decoder"
    encoder: str = "encoder"
    qkv: Packing
    output: str
    norm: Norm
    post_norm: bool = False
    encoder_norm: Norm | None = None
    layers: str = "decoder_layers"
    heads: str = "decoder_attention_heads"
    hands_on: tuple[int, ...] = ()
    reads: Literal["text", "sounds"] = "text"


@dataclass(frozen=True, kw_only=True)
class ImageLayers:
    """Blocks of another kind among a decoder's, whose keys and values are of images: a text alone passes them by.

    Attributes:
        layers: the config key that lists the numbers of these blocks.
        states: what the base model calls what they look at, [B, M, D].
        mask: what it calls what is added to their scores, [B, 1, T, M].
        facts: attributes of an `Architecture` that are others there, by name.
    """

    layers: str
    states: str
    mask: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The facts of one `model_type`. Tensor names are without ".weight" / ".bias", below the block.

    Attributes:
        model_type: as in config.json, and the name of the file that holds these facts.
        base: prefix of the base model's tensors; checkpoints of the bare base model lack it.
        block: a block's prefix below `base`, with {layer}.
        qkv: layout of the projections.
        output: the output projection, [D, H d].
        norm: the norm whose output the projections read; None: they read the residual stream as it is.
        mlp_output: the projection that ends the block's MLP, [D, F], and gives what is added to the residual stream;
            None where no single one does: an MLP of experts, or with a norm behind it.
        variants: facts that are others where the config says so, each on top of those before it: see `of`.
        position: "rope" (q and k turn with the position, in all layers or in some), "learned" (added to the input),
            "alibi" (scores fall with the distance) or "relative" (scores gain a table's number for the distance);
            `Geometry.block` says it of a layer.
        table: where position is "relative", the table [buckets, H]; blocks without have the first one's.
        cross: the second attention of an encoder-decoder's blocks. Then attention sites are counted in place of layers:
            2 n is the self-attention of block n and 2 n + 1 this one; see `at` and `stem`.
        seeing: what blocks that look at images have, where some do.
        seeing_layers: their numbers, as a config has them: see `of`.
        coarse_slopes: ALiBi's numbers are added before scores are multiplied by the scale, and rounded to bfloat16.
        scale: what scores are multiplied by where the class's attention keeps no number `scaling`: "root", the inverse
            root of a head's size, or "one".
        window_key: the config key that holds a window.
        local_layers: the config key that says "local" of each layer whose attention narrows its mask to the window by
            itself; "" where the model's masks tell.
        interleaved: rotary planes are (2 p, 2 p + 1) of a head, not (p, p + half).
        q_norm, k_norm: norms on queries and keys, where the class has them; "" where none of the family has.
        sinks: a parameter [H] that every query head may look at besides its tokens; "" without.
        after: the norm that the attention's output goes through before it is added to the residual stream; "" where
            it is added as it is.
        scaled_residual: the attention's output is multiplied by a number before it is added, or added to something else
            than the residual stream.
        clip: the config key, with dots where it is inside others, of a bound that queries, keys and values are cut off
            at; "" without.
        attention: the module, below the block, that reads the states and mixes tokens; "" where it is the one that has
            the output projection.
        adds_stream: the attention is given what its output is added to, and adds it by itself.
        context_key: the config key of the longest input in tokens; "" where there is no such bound.
        context: the longest input where a config has no such key, or that of the training where there is no bound;
            None: the key is there.
        judged: the attention implementation in which the class is asked what it computes: "eager", or "sdpa" where the
            class's eager attention computes something else than it does by default.
        causal: a token sees itself and those before it; else every token sees all, and there is no cache.
        first_position: how many positions of the model's table no token ever has.
        since: the first release of transformers whose class was seen to compute what it says.
        keys_from: where keys and values come from: what queries come from ("self"), or another text ("cross").
        config_kv_heads: the config key that holds K, None where the class has one K/V head per query head.
        transposed: weights are stored [in, out] (Conv1D); `linears` lists all that are, below the block.
        linears: see `transposed`.
        scaled_embedding: embeddings are multiplied by sqrt(D).
        fused_gate_up: the MLP's gate and up projections are one tensor.
        buffers: tensors below the block that older checkpoints carry and no class reads.
        unread: what names outside the blocks begin with of tensors that checkpoints carry and not every class of the
            family reads: buffers, and heads of another task.
        legacy_config: keys that older readers want, mapped to the key that holds the value today.
    """

    model_type: str
    base: str
    block: str
    qkv: Packing
    output: str
    norm: Norm | None
    position: Literal["rope", "learned", "alibi", "relative"]
    table: str = ""
    cross: CrossAttention | None = None
    seeing: ImageLayers | None = None
    seeing_layers: frozenset[int] = frozenset()
    mlp_output: str | None = "mlp.down_proj"
    variants: tuple[Variant, ...] = ()
    scale: Literal["root", "one"] = "root"
    coarse_slopes: bool = False
    window_key: str = "sliding_window"
    local_layers: str = ""
    interleaved: bool = False
    q_norm: str = ""
    k_norm: str = ""
    sinks: str = ""
    after: str = ""
    scaled_residual: bool = False
    clip: str = ""
    attention: str = ""
    adds_stream: bool = False
    context_key: str = "max_position_embeddings"
    context: int | None = None
    judged: Literal["eager", "sdpa"] = "eager"
    causal: bool = True
    first_position: int = 0
    keys_from: Literal["self", "cross"] = "self"
    since: str = "0"
    config_kv_heads: str | None = "num_key_value_heads"
    transposed: bool = False
    linears: tuple[str, ...] = ()
    scaled_embedding: bool = False
    fused_gate_up: bool = False
    buffers: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    legacy_config: dict[str, str] = field(default_factory=dict)

    @property
    def attentions(self) -> int:
        """How many attention sites a block has."""
        return 1 if self.cross is None else 2

    @property
    def stack(self) -> str:
        """The module of the base model that has the blocks, "" where that is the base model."""
        return "" if self.cross is None else self.cross.stack

    @property
    def hands_on(self) -> tuple[int, ...]:
        """See `CrossAttention`."""
        return () if self.cross is None else self.cross.hands_on

    def at(self, site: int) -> Architecture:
        """Give the facts of one attention site."""
        cross = self.cross
        if self.seeing is not None and site in self.seeing_layers:
            facts = self.seeing.facts
            return replace(self, position="learned", keys_from="cross", seeing_layers=frozenset(), **facts)
        if cross is None or site % self.attentions == 0:
            return self
        return replace(
            self,
            qkv=cross.qkv,
            output=cross.output,
            norm=cross.norm,
            position="learned",
            table="",
            keys_from="cross",
        )

    def first_like(self, site: int) -> int:
        """Give the first site of the kind that one is of."""
        if site in self.seeing_layers:
            return min(self.seeing_layers)
        return site % self.attentions

    def stem(self, site: int) -> str:
        """Give what the names of the block that a site is in begin with, in the base model."""
        return self.block.format(layer=site // self.attentions)

    @property
    def turns(self) -> bool:
        """Queries and keys turn with the position, in all layers or in some."""
        return self.position == "rope"

    def of(self, config: PreTrainedConfig) -> Architecture:
        """Give the facts as one config has them: see `Variant` and `ImageLayers`."""
        found = self
        if self.seeing is not None:
            numbers = getattr(config, self.seeing.layers, None) or ()
            found = replace(self, seeing_layers=frozenset(n for n in numbers if n < config.num_hidden_layers))
        for variant in self.variants:
            if variant.meets(config):
                found = replace(found, **variant.facts)
        return found

    def longest(self, config: PreTrainedConfig) -> Any:
        """Give the longest input in tokens as a config has it, whatever stands there."""
        return getattr(config, self.context_key, self.context)

    def windows(self, config: PreTrainedConfig) -> tuple[int | None, ...]:
        """Tell how many tokens back a token sees, by layer, where attention narrows its mask by itself; else empty."""
        if not self.local_layers:
            return ()
        window = getattr(config, self.window_key)
        return tuple(window if kind == "local" else None for kind in getattr(config, self.local_layers))

    @property
    def mixer(self) -> str:
        """The module, below the block, that reads the states and mixes tokens."""
        return self.attention or self.output.rpartition(".")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """The modules, below the block, of the attention: what reads, and what gives its output where that is another.

        That is the output projection where it is apart, or where what is around it adds the residual stream.
        """
        inside = self.output.startswith(f"{self.mixer}.") and not self.adds_stream
        return (self.mixer,) if inside else (self.mixer, self.output)

    @property
    def projections(self) -> tuple[str, ...]:
        """The attention projections' names, output last."""
        return (*dict.fromkeys(self.qkv.roles.values()), self.output)

    @property
    def tensors(self) -> frozenset[str]:
        """Every tensor that the attention may have, with ".weight" or ".bias"."""
        linears = {f"{stem}.{kind}" for stem in self.projections for kind in ("weight", "bias")}
        norms = {f"{stem}.{kind}" for stem in (self.q_norm, self.k_norm) if stem for kind in ("weight", "bias")}
        return frozenset(linears | norms | ({self.sinks} if self.sinks else set()))

    def rows(self, weight: Tensor) -> Tensor:
        """Give a weight as stored, [out, in] or [in, out], as [out, in]; and the other way round."""
        return weight.T if self.transposed else weight

    def row_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape that `rows` gives."""
        return shape[::-1] if self.transposed else shape
