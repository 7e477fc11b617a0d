"""What the attention cache is to become: fewer K/V heads, or one latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convert_attn.convert.geometry import Geometry


@dataclass(frozen=True)
class SharedHeads:
    """GQA and MQA: `groups` K/V heads of the head size that the model has."""

    groups: int

    def cache_numbers(self, sizes: Geometry) -> int:
        """Numbers cached per token over all layers."""
        return sizes.cache_numbers(self.groups)

    def settings(self) -> dict[str, Any]:
        """For config.json's `convert_attn` block and --json."""
        return {"groups": self.groups}

    def rows(self, sizes: Geometry) -> dict[str, tuple[str, str]]:
        """What changes, as label -> (before, after)."""
        return {"K/V heads": (str(sizes.num_kv_heads), str(self.groups))}

    def sentence(self, sizes: Geometry) -> str:
        """What was done, for the card."""
        return f"{sizes.num_heads} query heads share {self.groups} key/value heads (there were {sizes.num_kv_heads})"


@dataclass(frozen=True)
class LatentCache:
    """MLA: one latent of `rank` and one rotary key of `rope_dim` numbers per token and layer.

    `norm`: an RMSNorm on the latent, in front of the cache.
    """

    rank: int
    rope_dim: int
    norm: bool = False

    def cache_numbers(self, sizes: Geometry) -> int:
        """Numbers cached per token over all layers."""
        return sizes.num_layers * (self.rank + self.rope_dim)

    def settings(self) -> dict[str, Any]:
        """For config.json's `convert_attn` block and --json."""
        return {"rank": self.rank, "rope_dim": self.rope_dim, "latent_norm": self.norm}

    def rows(self, sizes: Geometry) -> dict[str, tuple[str, str]]:
        """What changes, as label -> (before, after)."""
        numbers = str(2 * sizes.num_kv_heads * sizes.head_dim)
        cached = {"cached per token and layer": (f"{numbers} numbers", f"{self.rank} latent + {self.rope_dim} rotary")}
        return cached | ({"norm of the latent": ("", "RMSNorm, not exact")} if self.norm else {})

    def sentence(self, sizes: Geometry) -> str:
        """What was done, for the card."""
        rotary = f" and a shared rotary key of {self.rope_dim}" if self.rope_dim else ""
        return (
            f"one latent of {self.rank} numbers{rotary} per token and layer is cached instead of the keys and values "
            f"of {sizes.num_kv_heads} heads"
            + ("; an RMSNorm normalises the latent, which rescales tokens of untypical size" if self.norm else "")
        )


Form = SharedHeads | LatentCache
