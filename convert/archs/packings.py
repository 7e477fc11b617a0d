"""Ways to store the projections of queries, keys and values: one object each, which takes them apart and joins them.

Shapes: H query heads, K key/value heads, d numbers in a head. What is stored has its outputs first ("rows": [out, D] of
weights, [out] of biases); a class that stores weights the other way round is `Architecture.transposed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Heads = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Queries [H, d, ...], keys [K, d, ...] and values [K, d, ...]; None where there is none, as for biases."""


class Packing(Protocol):
    """How one family stores q, k and v."""

    @property
    def roles(self) -> dict[str, str]:
        """ "q", "k" and "v" -> the name of the tensor that it is stored in, without ".weight"."""

    def rows(self, heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
        """Give outputs of each stored tensor, by name."""

    def kv_heads(self, rows: Mapping[str, int], heads: int, head_dim: int) -> float:
        """K, of the outputs of each stored tensor; no whole number where they are those of no K."""

    def split(self, stored: Mapping[str, Tensor], heads: int, kv_heads: int) -> Heads:
        """Take what is stored, by name, apart; a name that is missing has no heads.

        Args:
            stored: [out, ...] each.
        """

    def join(self, parts: Heads) -> dict[str, Tensor]:
        """Undo `split`."""


@dataclass(frozen=True)
class Separate:
    """Three tensors, of [H d], [K d] and [K d] rows (Llama)."""

    q: str
    k: str
    v: str

    @property
    def roles(self) -> dict[str, str]:
        """Each its own."""
        return {"q": self.q, "k": self.k, "v": self.v}

    def rows(self, heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
        """H d, K d and K d."""
        return {self.q: heads * head_dim, self.k: kv_heads * head_dim, self.v: kv_heads * head_dim}

    def kv_heads(self, rows: Mapping[str, int], heads: int, head_dim: int) -> float:
        """By the rows of k."""
        return rows[self.k] / head_dim

    def split(self, stored: Mapping[str, Tensor], heads: int, kv_heads: int) -> Heads:
        """Take each as it is."""
        q, k, v = (
            None if (rows := stored.get(name)) is None else rows.unflatten(0, (count, -1))
            for name, count in ((self.q, heads), (self.k, kv_heads), (self.v, kv_heads))
        )
        return q, k, v

    def join(self, parts: Heads) -> dict[str, Tensor]:
        """Undo `split`."""
        named = zip((self.q, self.k, self.v), parts, strict=True)
        return {name: part.flatten(0, 1) for name, part in named if part is not None}


class _Fused:
    """One tensor for all three."""

    qkv: str

    @property
    def roles(self) -> dict[str, str]:
        """The same one for each."""
        return dict.fromkeys("qkv", self.qkv)

    def rows(self, heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
        """(H + 2 K) d."""
        return {self.qkv: (heads + 2 * kv_heads) * head_dim}

    def kv_heads(self, rows: Mapping[str, int], heads: int, head_dim: int) -> float:
        """Give half of what the queries leave."""
        return (rows[self.qkv] / head_dim - heads) / 2

    def split(self, stored: Mapping[str, Tensor], heads: int, kv_heads: int) -> Heads:
        """Take the tensor apart."""
        rows = stored.get(self.qkv)
        return (None, None, None) if rows is None else self._apart(rows, heads, kv_heads)

    def join(self, parts: Heads) -> dict[str, Tensor]:
        """Undo `split`.

        Raises:
            ValueError: some of the three have a bias and some have none, which one tensor cannot hold.
        """
        there = [part for part in parts if part is not None]
        if not there:
            return {}
        if len(there) < len(parts):
            raise ValueError(f"'{self.qkv}' holds queries, keys and values: all of them have a bias, or none")
        return {self.qkv: self._together(*there)}

    def _apart(self, rows: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def _together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class FusedBlocks(_Fused):
    """Rows of all queries, then of all keys, then of all values: [(H + 2 K) d] (GPT-2, Phi-3)."""

    qkv: str

    def _apart(self, rows: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rows.unflatten(0, (heads + 2 * kv_heads, -1)).split([heads, kv_heads, kv_heads])
        return q, k, v

    def _together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([q, k, v]).flatten(0, 1)


@dataclass(frozen=True)
class FusedGroups(_Fused):
    """Group by group: its H / K queries, its key, its value: [K, H / K + 2, d] (Falcon's new decoder, InternLM2)."""

    qkv: str

    def _apart(self, rows: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        groups = rows.unflatten(0, (kv_heads, heads // kv_heads + 2, -1))
        return groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]

    def _together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([q.unflatten(0, (len(k), -1)), k[:, None], v[:, None]], 1).flatten(0, 2)


@dataclass(frozen=True)
class FusedHeads(FusedGroups):
    """Head by head, its query, its key and its value: [H, 3, d] (GPT-NeoX, Bloom); every head has its own K and V."""

    def rows(self, heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
        """3 H d: a class that splits so has no shared heads, whatever is asked for."""
        return {self.qkv: 3 * heads * head_dim}

    def kv_heads(self, rows: Mapping[str, int], heads: int, head_dim: int) -> float:
        """H, where the rows are 3 H d."""
        return heads if rows[self.qkv] == 3 * heads * head_dim else -1.0


@dataclass(frozen=True)
class FusedShards(_Fused):
    """CodeGen's rows, shard by shard: queries, values and keys of a part of the heads, as machines in its training had.

    Each of s shards holds H / s queries, K / s values and K / s keys. s is 4, or what divides 4 and K where K is less.
    """

    qkv: str

    def kv_heads(self, rows: Mapping[str, int], heads: int, head_dim: int) -> float:
        """Give half of what the queries leave; the heads are to fill four shards."""
        return -1.0 if heads % 4 else super().kv_heads(rows, heads, head_dim)

    def _apart(self, rows: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        shards = math.gcd(4, kv_heads)
        sizes = [heads // shards, kv_heads // shards, kv_heads // shards]
        q, v, k = rows.unflatten(0, (shards, sum(sizes), -1)).split(sizes, 1)
        return q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)

    def _together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shards = math.gcd(4, len(k))
        return torch.cat([part.unflatten(0, (shards, -1)) for part in (q, v, k)], 1).flatten(0, 2)
