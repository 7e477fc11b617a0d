"""What the attention cache is to become: fewer K/V heads, or one latent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from convert_attn.convert.archs.geometry import Geometry


@dataclass(frozen=True)
class SharedHeads:
    """GQA and MQA: `groups` K/V heads of the head size that the model has."""

    groups: int

    def label(self, heads: int) -> str:
        """Name it in a word, for a model of H query heads: "MHA", "GQA-4" or "MQA"."""
        return "MQA" if self.groups == 1 else "MHA" if self.groups == heads else f"GQA-{self.groups}"

    def cache_numbers(self, sizes: Geometry) -> int:
        """Numbers cached per token over all layers."""
        return sum(self.numbers_by_layer(sizes))

    def numbers_by_layer(self, sizes: Geometry) -> list[int]:
        """Numbers cached per token in each layer."""
        return [2 * self.groups * sizes.head_dim] * sizes.num_layers

    def settings(self) -> dict[str, Any]:
        """For config.json's `convert_attn` block and --json."""
        return {"groups": self.groups}

    def rows(self, sizes: Geometry) -> dict[str, tuple[str, str]]:
        """What changes, as label -> (before, after)."""
        return {"K/V heads": (str(sizes.num_kv_heads), str(self.groups))}

    def sentence(self, heads: int, kv_heads: int) -> str:
        """Say what was done to a model of so many query and K/V heads."""
        return f"{heads} query heads share {self.groups} key/value heads (there were {kv_heads})"


@dataclass(frozen=True)
class LatentCache:
    """MLA: one latent of `rank` and one rotary key of `rope_dim` numbers per token and layer.

    `norm`: an RMSNorm on the latent, in front of the cache. `ranks`: one for each layer where they differ; `rank` is
    then their mean, rounded down.
    """

    rank: int
    rope_dim: int
    norm: bool = False
    ranks: tuple[int, ...] = ()

    def label(self, heads: int) -> str:
        """Name it in a word: "MLA 256 + 32", or "MLA 256" without a rotary key."""
        return f"MLA {self.rank}" + (f" + {self.rope_dim}" if self.rope_dim else "")

    def of_layer(self, layer: int) -> LatentCache:
        """The sizes of one layer."""
        return replace(self, rank=self.ranks[layer], ranks=()) if self.ranks else self

    def cache_numbers(self, sizes: Geometry) -> int:
        """Numbers cached per token over all layers."""
        return sum(self.numbers_by_layer(sizes))

    def numbers_by_layer(self, sizes: Geometry) -> list[int]:
        """Numbers cached per token in each layer."""
        return [rank + self.rope_dim for rank in self.ranks or (self.rank,) * sizes.num_layers]

    def settings(self) -> dict[str, Any]:
        """For config.json's `convert_attn` block and --json."""
        settings = {"rank": self.rank, "rope_dim": self.rope_dim, "latent_norm": self.norm}
        return settings | ({"ranks": list(self.ranks)} if self.ranks else {})

    def rows(self, sizes: Geometry) -> dict[str, tuple[str, str]]:
        """What changes, as label -> (before, after)."""
        numbers = str(2 * sizes.num_kv_heads * sizes.head_dim)
        layers = f" ({min(self.ranks)} to {max(self.ranks)} by layer)" if self.ranks else ""
        cached = {
            "cached per token and layer": (f"{numbers} numbers", f"{self.rank} latent{layers} + {self.rope_dim} rotary")
        }
        return cached | ({"norm of the latent": ("", "RMSNorm, not exact")} if self.norm else {})

    def sentence(self, heads: int, kv_heads: int) -> str:
        """Say what was done to a model of so many query and K/V heads."""
        rotary = f" and a shared rotary key of {self.rope_dim}" if self.rope_dim else ""
        mean = " (on average: each layer has a rank of its own)" if self.ranks else ""
        return (
            f"one latent of {self.rank} numbers{mean}{rotary} per token and layer is cached instead of the keys "
            f"and values of {kv_heads} heads"
            + ("; an RMSNorm normalises the latent, which rescales tokens of untypical size" if self.norm else "")
        )


Form = SharedHeads | LatentCache


def form_of(config: Any) -> Form:
    """Tell what the class of a config caches.

    Args:
        config: typed, of a model of any family, a result's too.
    """
    if rank := getattr(config, "kv_lora_rank", None):
        ranks = tuple(getattr(config, "kv_lora_ranks", None) or ())
        mean = sum(ranks) // len(ranks) if ranks else int(rank)
        rope_dim, norm = getattr(config, "qk_rope_head_dim", 0), getattr(config, "latent_norm", False)
        return LatentCache(mean, int(rope_dim), bool(norm), ranks)
    if getattr(config, "multi_query", False):
        return SharedHeads(1)
    return SharedHeads(int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads))
