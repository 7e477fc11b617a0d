"""One shared key for several heads under rotary position: cross-plane alternating least squares.

With R_D the rotation by offset D, head i scores q_i^T R_-D k_i. Wanted are one shared key K y and a map T_i
per query head that minimise sum_i E |q_i^T R_-D k_i - (T_i q_i)^T R_-D K y|^2 over inputs and offsets. K is a
mixture of the group's own keys, and both half-steps are closed forms in d x d matrices:

    T_i = E[R_-D K C K^T R_D]^-1 E[R_-D K C k_i^T R_D]
    K   = (sum_i E[R_D T_i Q_i T_i^T R_-D])^-1 sum_i E[R_D T_i Q_i R_-D] k_i

Shape letters: N candidate groups fitted at once, n key heads and m query heads in each, d head size,
P = d / 2 planes. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import Stack, damped_solve, normalised_overlap
from convert_attn.convert.maths.rotary import MeanConjugation, Offsets, RotaryPlanes, from_planes, to_planes

_LEAST = 1e-6  # damping that the alternation itself needs
_BATCH_NUMBERS = 2**21  # numbers in one batch of Gram matrices: keeps candidate groups within some 100 MB


def plane_power(moment: Tensor) -> Tensor:
    """Give the mean square of each number of E[k k^T] [..., d, d], the same for both of a plane: [..., d]."""
    planes = moment.shape[-1] // 2
    mean = moment.diagonal(0, -2, -1).unflatten(-1, (2, planes)).mean(-2)
    return torch.cat([mean, mean], -1)


@dataclass(frozen=True, kw_only=True)
class RotaryKeys:
    """What the fit needs to know of a layer with H query heads and K key heads.

    Attributes:
        queries: [H, d, d], E[q q^T].
        gram: [K, d, K, d], E[k k^T].
        rotary: how each plane turns.
        offsets: how far each query head looks back.
        damping: what a product of a query's and a key's number costs besides its error, as a share of its square.
    """

    queries: Tensor
    gram: Tensor
    rotary: RotaryPlanes
    offsets: Offsets
    damping: float

    @cached_property
    def turn(self) -> MeanConjugation:
        """Expectations under the rotation, per query head."""
        return MeanConjugation.of(self.rotary, self.offsets)

    @property
    def key_of(self) -> Tensor:
        """[H] the key head of each query head."""
        return torch.arange(self.gram.shape[0]).repeat_interleave(self.queries_per_key)

    @property
    def queries_per_key(self) -> int:
        """H / K."""
        return self.queries.shape[0] // self.gram.shape[0]

    def plane_overlap(self, heads: list[int]) -> tuple[Tensor, Tensor]:
        """Per rotary plane, E[k conj(k)] across n heads [P, n, n] and the size of each head's queries [P, n]."""
        planes = self.gram.shape[1] // 2
        weight = self.queries.unflatten(0, (-1, self.queries_per_key)).sum(1)[heads]
        size = weight.diagonal(0, 1, 2).unflatten(-1, (2, planes)).sum(1).sqrt().T
        linear, _ = to_planes(self.gram[heads][:, :, heads].permute(0, 2, 1, 3))
        return linear.diagonal(0, 2, 3).permute(2, 0, 1), size

    def affinity(self) -> Tensor:
        """Give [K, K] how much two heads have in common within the rotary planes, where a phase is free."""
        overlap, size = self.plane_overlap(list(range(self.gram.shape[0])))
        return normalised_overlap((size[:, :, None] * overlap * size[:, None]).abs().square().sum(0))

    @property
    def energy(self) -> float:
        """E |score|^2 summed over all heads: the error of a shared key of zero."""
        own = self.gram.diagonal(0, 0, 2).permute(2, 0, 1).repeat_interleave(self.queries_per_key, 0)
        return float((self.queries * self.turn(own, inverse=True)).sum())


@dataclass(frozen=True, kw_only=True)
class _Groups:
    """The parts of `RotaryKeys` that N candidate groups use."""

    queries: Tensor  # [N, m, d, d]
    gram: Tensor  # [N, n, d, n, d]
    turn: MeanConjugation  # [N, m, P, P] each
    key_of: Tensor  # [m], the key head (in the group) of each query head
    damping: float

    @classmethod
    def of(cls, keys: RotaryKeys, groups: list[tuple[int, ...]]) -> _Groups:
        index = torch.tensor(groups)
        per_key = keys.queries_per_key
        query = (index[..., None] * per_key + torch.arange(per_key)).flatten(1)
        gram = keys.gram.permute(0, 2, 1, 3)[index[:, :, None], index[:, None]].permute(0, 1, 3, 2, 4)
        key_of = torch.arange(index.shape[1]).repeat_interleave(per_key)
        return cls(
            queries=keys.queries[query], gram=gram, turn=keys.turn.heads(query), key_of=key_of, damping=keys.damping
        )

    def key_gram(self, mixing: Tensor) -> Tensor:
        """E[(K y) k^T] for the shared key `mixing` [N, d, n, d] and every key head: [N, n, d, d]."""
        return torch.einsum("Narb,Nrbkc->Nkac", mixing, self.gram)

    def query_maps(self, mixing: Tensor) -> tuple[Tensor, Tensor]:
        """Give the best T [N, m, d, d] for a shared key, and each group's residual [N]."""
        cross = self.key_gram(mixing)  # [N, n, d, d]
        shared = torch.einsum("Nkac,Nbkc->Nab", cross, mixing)
        own = self.gram.diagonal(0, 1, 3).permute(0, 3, 1, 2)  # [N, n, d, d]
        seen = self.turn(shared[:, None], inverse=True)
        against = self.turn(cross[:, self.key_of], inverse=True)
        maps = damped_solve(seen, against, max(self.damping, _LEAST) * plane_power(seen))
        target = self.turn(own[:, self.key_of], inverse=True)
        residual = (self.queries * (target - against.mT @ maps)).sum((-1, -2, -3))
        return maps, residual.clamp_min(0)

    def shared_key(self, maps: Tensor) -> Tensor:
        """Give the best shared key, as a mixture [N, d, n, d], for given query maps."""
        moved = maps @ self.queries
        weight = self.turn(moved @ maps.mT).sum(1)  # [N, d, d]
        towards = self.turn(moved)
        n = self.gram.shape[1]
        per_key = towards.unflatten(1, (n, -1)).sum(2)  # [N, n, d, d]
        ridge = max(self.damping, _LEAST) * plane_power(weight)
        solved = damped_solve(weight[:, None], per_key, ridge[:, None])
        return self.normalised(solved.permute(0, 2, 1, 3))

    def normalised(self, mixing: Tensor) -> Tensor:
        """Give the shared key scaled to the mean size of the group's keys (the query maps take the inverse)."""
        have = torch.einsum("Narb,Nrbkc,Nakc->N", mixing, self.gram, mixing)
        want = torch.einsum("Nkaka->N", self.gram) / self.gram.shape[1]
        scale = torch.where((have > 0) & (want > 0), want / have.clamp_min(1e-200), torch.ones_like(have))
        return mixing * scale.sqrt()[:, None, None, None]


def _start(keys: RotaryKeys, group: tuple[int, ...], fast: int) -> Tensor:
    """A first shared key [d, n, d]: complex PCA in each of the `fast` planes, one real PCA over the rest."""
    n, d, per_key = len(group), keys.gram.shape[1], keys.queries_per_key
    planes = d // 2
    index = list(group)
    weight = keys.queries.unflatten(0, (-1, per_key)).sum(1)[index]  # [n, d, d]
    gram = keys.gram[index][:, :, index]
    mixing = gram.new_zeros(d, n, d)
    overlap, size = (part[:fast] for part in keys.plane_overlap(index))
    vector = torch.linalg.eigh(size[:, :, None] * overlap * size[:, None])[1][..., -1]  # [fast, n]
    scalar = (vector.conj() * size).T  # [n, fast]
    turned = from_planes(torch.diag_embed(scalar), torch.zeros_like(torch.diag_embed(scalar)))
    fast_rows = torch.cat([torch.arange(fast), planes + torch.arange(fast)])
    slow_rows = torch.cat([torch.arange(fast, planes), planes + torch.arange(fast, planes)])
    mixing[fast_rows[:, None, None], torch.arange(n)[:, None], fast_rows] = turned.transpose(0, 1)
    if len(slow_rows):
        slow = Stack(weight[:, slow_rows][:, :, slow_rows], gram[:, slow_rows][:, :, :, slow_rows])
        part, _ = slow.share(list(range(n)))
        mixing[slow_rows[:, None, None], torch.arange(n)[:, None], slow_rows] = part
    return mixing


def _starts(planes: int) -> list[int]:
    """Numbers of fast planes to try: all, three quarters, half, a quarter, none."""
    return sorted({planes * quarter // 4 for quarter in range(5)}, reverse=True)


def _sweep(groups: _Groups, mixing: Tensor, sweeps: int) -> tuple[Tensor, Tensor, Tensor]:
    """`sweeps` alternations: the shared key, the query maps that go with it, and the residual."""
    mixing = groups.normalised(mixing)
    maps, residual = groups.query_maps(mixing)
    for _ in range(sweeps):
        mixing = groups.shared_key(maps)
        maps, residual = groups.query_maps(mixing)
    return mixing, maps, residual


def rotary_residuals(keys: RotaryKeys, groups: list[tuple[int, ...]], sweeps: int = 2) -> list[float]:
    """Tell how much each candidate group would lose, after a short fit; groups of one size only."""
    at_once = max(1, _BATCH_NUMBERS // (len(groups[0]) * keys.gram.shape[1]) ** 2)
    residuals: list[float] = []
    for begin in range(0, len(groups), at_once):
        batch = groups[begin : begin + at_once]
        start = torch.stack([_start(keys, group, keys.gram.shape[1] // 4) for group in batch])
        residuals += _sweep(_Groups.of(keys, batch), start, sweeps)[2].tolist()
    return residuals


def fit_rotary(keys: RotaryKeys, group: tuple[int, ...], sweeps: int = 60) -> tuple[Tensor, Tensor]:
    """Give the shared key of one group and the query map of each of its query heads.

    Several starts are tried for a few sweeps; the best goes on until `sweeps`.

    Returns:
        mixing [d, n, d] (K = sum_k mixing[:, k] @ Wk_k) and maps [m, d, d] (Wq'_i = maps[i] @ Wq_i).
    """
    planes = keys.gram.shape[1] // 2
    starts = torch.stack([_start(keys, group, fast) for fast in _starts(planes)])
    tried, _, residual = _sweep(_Groups.of(keys, [group] * len(starts)), starts, 4)
    best = int(residual.argmin())
    mixing, maps, _ = _sweep(_Groups.of(keys, [group]), tried[best : best + 1], sweeps)
    return mixing[0], maps[0]
