"""What the attention cache is to become: fewer K/V heads, or one latent; sizes hold a number for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.geometry import Geometry

LAYER_GATE = "layer_gate"  # in the names of what mixes the states of all layers, a row for the embedding and each
HEADS_BY_LAYER = "num_key_value_heads_per_layer"  # in the config of a class whose layers may differ


def by_layer(numbers: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """Spell out a shorthand: one number is that of every layer.

    Raises:
        ValueError: neither one number nor one for each layer.
    """
    given = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    if len(given) == 1:
        return given * layers
    if len(given) != layers:
        raise ValueError(f"{len(given)} numbers for {layers} layers")
    return given


def numbers_of(numbers: Sequence[int]) -> str:
    """Write sizes as a user types them: "4" where all are alike, else "4,4,2"."""
    return ",".join(map(str, numbers[:1] if len(set(numbers)) == 1 else numbers))


def span(numbers: Sequence[int]) -> str:
    """Write sizes in a word: "4" where all are alike, else "2..4"."""
    least, most = min(numbers), max(numbers)
    return str(most) if least == most else f"{least}..{most}"


def told(numbers: Sequence[int]) -> int | list[int]:
    """For JSON: one number where all are alike."""
    return numbers[0] if len(set(numbers)) == 1 else list(numbers)


@dataclass(frozen=True)
class SharedHeads:
    """GQA and MQA: `groups` K/V heads of the head size that the model has, one number for each layer."""

    groups: tuple[int, ...]

    @classmethod
    def of(cls, groups: int | Sequence[int], layers: int) -> SharedHeads:
        """From one number for all layers, or one for each."""
        return cls(by_layer(groups, layers))

    @property
    def varied(self) -> frozenset[str]:
        """The options whose numbers differ by layer."""
        return frozenset({"groups"} if len(set(self.groups)) > 1 else ())

    def numbers(self, option: str) -> tuple[int, ...]:
        """By layer what an option says."""
        return {"groups": self.groups}[option]

    def of_layer(self, layer: int) -> SharedHeads:
        """Give the form of one layer."""
        return SharedHeads((self.groups[layer],))

    def label(self, heads: int) -> str:
        """Name it in a word, for a model of H query heads: "MHA", "GQA-4", "GQA-2..4" by layer, or "MQA"."""
        alike = {heads: "MHA", 1: "MQA"} if not self.varied else {}
        return alike.get(self.groups[0], f"GQA-{span(self.groups)}")

    def cache_numbers(self, sizes: Geometry) -> int:
        """Give numbers cached per token over all layers."""
        return sum(self.numbers_by_layer(sizes))

    def numbers_by_layer(self, sizes: Geometry) -> list[int]:
        """Give numbers cached per token in each layer."""
        return [2 * groups * sizes.head_dim for groups in self.groups]

    def settings(self) -> dict[str, Any]:
        """For config.json's `convert_attn` block and --json."""
        return {"groups": told(self.groups)}

    def rows(self, sizes: Geometry) -> dict[str, tuple[str, str]]:
        """Tell what changes, as label -> (before, after)."""
        return {"K/V heads": (self._counted(sizes.kv_by_layer), self._counted(self.groups))}

    def sentence(self, heads: int, before: SharedHeads) -> str:
        """Say what was done to a model of so many query heads, and K/V heads before."""
        there = self._counted(before.groups)
        return f"{heads} query heads share {self._counted(self.groups)} key/value heads (there were {there})"

    @staticmethod
    def _counted(groups: tuple[int, ...]) -> str:
        return str(groups[0]) if len(set(groups)) == 1 else f"{min(groups)} to {max(groups)} (by layer)"


@dataclass(frozen=True)
class LatentCache:
    """MLA: one latent of `ranks` and one rotary key of `rope_dims` numbers per token, each given layer by layer.

    `norm`: an RMSNorm on the latent, in front of the cache. `key_sizes`: numbers by which a norm on keys divides them.
    """

    ranks: tuple[int, ...]
    rope_dims: tuple[int, ...]
    norm: bool = False
    key_sizes: int = 0

    @classmethod
    def of(
        cls, rank: int | Sequence[int], rope_dim: int | Sequence[int], layers: int, norm: bool = False
    ) -> LatentCache:
        """From one number for all layers, or one for each."""
        return cls(by_layer(rank, layers), by_layer(rope_dim, layers), norm)

    @property
    def rank(self) -> int:
        """The rank of every layer; where they differ their mean, rounded down."""
        return sum(self.ranks) // len(self.ranks)

    @property
    def rope_dim(self) -> int:
        """The size of every layer's rotary key; where they differ the largest."""
        return max(self.rope_dims)

    @property
    def varied(self) -> frozenset[str]:
        """The options whose numbers differ by layer."""
        return frozenset(option for option in ("rank", "rope_dim") if len(set(self.numbers(option))) > 1)

    @property
    def no_planes(self) -> tuple[tuple[float, ...], ...]:
        """By layer a zero for each plane of the rotary key: frequencies that are not known yet."""
        return tuple((0.0,) * (size // 2) for size in self.rope_dims)

    def numbers(self, option: str) -> tuple[int, ...]:
        """By layer what an option says."""
        return {"rank": self.ranks, "rope_dim": self.rope_dims}[option]

    def of_layer(self, layer: int) -> LatentCache:
        """Give the form of one layer."""
        return LatentCache((self.ranks[layer],), (self.rope_dims[layer],), self.norm, self.key_sizes)

    def label(self, heads: int) -> str:
        """Name it in a word: "MLA 256 + 32", or "MLA 256" without a rotary key."""
        return f"MLA {self.rank}" + (f" + {self.rope_dim}" if self.rope_dim else "")

    def cache_numbers(self, sizes: Geometry) -> int:
        """Give numbers cached per token over all layers."""
        return sum(self.numbers_by_layer(sizes))

    def numbers_by_layer(self, sizes: Geometry) -> list[int]:
        """Give numbers cached per token in each layer."""
        both = zip(self.ranks, self.rope_dims, strict=True)
        return [rank + rope_dim + self.key_sizes for rank, rope_dim in both]

    def settings(self) -> dict[str, Any]:
        """For config.json's `convert_attn` block and --json."""
        settings: dict[str, Any] = {"rank": self.rank, "rope_dim": self.rope_dim, "latent_norm": self.norm}
        settings |= {"key_sizes": self.key_sizes} if self.key_sizes else {}
        return settings | ({"ranks": list(self.ranks)} if "rank" in self.varied else {})

    def rows(self, sizes: Geometry) -> dict[str, tuple[str, str]]:
        """Tell what changes, as label -> (before, after)."""
        numbers = span([2 * heads * sizes.head_dim for heads in sizes.kv_by_layer])
        sizes_of_keys = f" + {self.key_sizes} sizes of keys" if self.key_sizes else ""
        layers = f" ({min(self.ranks)} to {max(self.ranks)} by layer)" if "rank" in self.varied else ""
        cached = {
            "cached per token and layer": (
                f"{numbers} numbers",
                f"{self.rank} latent{layers} + {self.rope_dim} rotary{sizes_of_keys}",
            )
        }
        return cached | ({"norm of the latent": ("", "RMSNorm, not exact")} if self.norm else {})

    def sentence(self, heads: int, before: SharedHeads) -> str:
        """Say what was done to a model of so many query heads, and K/V heads before."""
        rotary = f" and a shared rotary key of {self.rope_dim}" if self.rope_dim else ""
        sizes_of_keys = f" and {self.key_sizes} sizes of keys" if self.key_sizes else ""
        mean = " (on average: each layer has a rank of its own)" if "rank" in self.varied else ""
        return (
            f"one latent of {self.rank} numbers{mean}{rotary}{sizes_of_keys} per token and layer is cached instead of "
            f"the keys and values of {span(before.groups)} heads"
            + ("; an RMSNorm normalises the latent, which rescales tokens of untypical size" if self.norm else "")
        )


Form = SharedHeads | LatentCache


def query_heads(config: Any) -> int:
    """Give the query heads of a layer of the class of a config: of an encoder-decoder, of its decoder."""
    arch = architectures().get(config.model_type)
    key = "num_attention_heads" if arch is None or arch.cross is None else arch.cross.heads
    return int(getattr(config, key))


def form_of(config: Any) -> Form:
    """Tell what the class of a config caches.

    Args:
        config: typed, of a model of any family, a result's too.
    """
    layers = config.num_hidden_layers
    if rank := getattr(config, "kv_lora_rank", None):
        ranks = getattr(config, "kv_lora_ranks", None) or int(rank)
        rope_dim, norm = getattr(config, "qk_rope_head_dim", 0), getattr(config, "latent_norm", False)
        found = LatentCache.of(ranks, int(rope_dim), layers, bool(norm))
        keys = int(getattr(config, "key_norm_heads", 0))
        return replace(found, key_sizes=1 if keys and config.key_norm_together else keys)
    heads = getattr(config, HEADS_BY_LAYER, None) or getattr(config, "num_key_value_heads", None)
    if not heads and getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        heads = 1
    return SharedHeads.of(heads or query_heads(config), layers)
