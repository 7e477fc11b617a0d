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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import Stack, damped_solve, normalised_overlap
from convert_attn.convert.maths.rotary import MeanConjugation, Offsets, RotaryPlanes, from_planes

_LEAST = 1e-6  # damping that the alternation itself needs
_SETTLED = 1e-6  # an alternation that gains so little of what is lost is the last
_BATCH_NUMBERS = 2**21  # numbers in one batch of Gram matrices: keeps candidate groups within some 100 MB

_Fit = tuple[Tensor, Tensor, Tensor]  # of N groups: shared keys [N, d, n, d], query maps [N, m, d, d], what is lost [N]


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

    @property
    def turning(self) -> int:
        """How many planes turn: the first ones."""
        return int((self.rotary.inv_freq != 0).sum())

    @cached_property
    def weight(self) -> Tensor:
        """What the queries of each key head weigh together, [K, d, d]."""
        together: Tensor = self.queries.unflatten(0, (-1, self.queries_per_key)).sum(1)
        return together

    @cached_property
    def plane_overlap(self) -> tuple[Tensor, Tensor]:
        """Per rotary plane, E[k conj(k)] across heads [P, K, K] and the size of each head's queries [P, K]."""
        planes = self.gram.shape[1] // 2
        size = self.weight.diagonal(0, 1, 2).unflatten(-1, (2, planes)).sum(1).sqrt().T
        first, second = self.gram[:, :planes], self.gram[:, planes:]  # the two numbers of each plane
        same = (first[..., :planes].diagonal(0, 1, 3) + second[..., planes:].diagonal(0, 1, 3)).permute(2, 0, 1)
        other = (second[..., :planes].diagonal(0, 1, 3) - first[..., planes:].diagonal(0, 1, 3)).permute(2, 0, 1)
        return torch.complex(same, other) / 2, size

    @cached_property
    def coarse(self) -> _Start:
        """The start from which candidate groups are compared: the cheapest, and the one that ranks them best."""
        return _Start.of(self, self.turning)

    def affinity(self) -> Tensor:
        """Give [K, K] how much two heads have in common within the rotary planes, where a phase is free."""
        overlap, size = self.plane_overlap
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
            queries=keys.queries[query],
            gram=gram,
            turn=keys.turn.heads(query),
            key_of=key_of,
            damping=keys.damping,
        )

    def key_gram(self, mixing: Tensor) -> Tensor:
        """E[(K y) k^T] for the shared key `mixing` [N, d, n, d] and every key head: [N, d, n, d]."""
        return torch.bmm(mixing.flatten(2), self.gram.flatten(3).flatten(1, 2)).view_as(mixing)

    def query_maps(self, mixing: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        """Give the best T [N, m, d, d] for a shared key and its `key_gram`, and each group's residual [N]."""
        shared = torch.bmm(cross.flatten(2), mixing.flatten(2).mT)
        seen = self.turn(shared[:, None], inverse=True)
        against = self.turn(cross.transpose(1, 2)[:, self.key_of], inverse=True)
        maps = damped_solve(seen, against, max(self.damping, _LEAST) * plane_power(seen))
        residual = self.energy - (self.queries * (against.mT @ maps)).sum((-1, -2, -3))
        return maps, residual.clamp_min(0)

    @cached_property
    def energy(self) -> Tensor:
        """What each group's scores weigh together: [N]."""
        own = self.gram.diagonal(0, 1, 3).permute(0, 3, 1, 2)  # [N, n, d, d]
        return (self.queries * self.turn(own[:, self.key_of], inverse=True)).sum((-1, -2, -3))

    def shared_key(self, maps: Tensor) -> Tensor:
        """Give the best shared key, as a mixture [N, d, n, d], for given query maps."""
        moved = maps @ self.queries
        weight = self.turn(moved @ maps.mT).sum(1)  # [N, d, d]
        towards = self.turn(moved)
        n = self.gram.shape[1]
        per_key = towards.unflatten(1, (n, -1)).sum(2).transpose(1, 2)  # [N, d, n, d]
        ridge = max(self.damping, _LEAST) * plane_power(weight)
        return damped_solve(weight, per_key.flatten(2), ridge).view_as(per_key)

    def normalised(self, mixing: Tensor) -> tuple[Tensor, Tensor]:
        """Give the shared key scaled to the mean size of the group's keys (the query maps take the inverse).

        Returns:
            the mixture [N, d, n, d] and its `key_gram`.
        """
        cross = self.key_gram(mixing)
        have = (cross * mixing).sum((-1, -2, -3))
        want = self.gram.diagonal(0, 1, 3).diagonal(0, 1, 2).sum((-1, -2)) / self.gram.shape[1]
        scale = torch.where((have > 0) & (want > 0), want / have.clamp_min(1e-200), torch.ones_like(have))
        root = scale.sqrt()[:, None, None, None]
        return mixing * root, cross * root


@dataclass(frozen=True)
class _Start:
    """First shared keys: complex PCA in each of the `fast` planes, one real PCA over the rest."""

    keys: RotaryKeys
    fast: int
    slow: Stack

    @classmethod
    def of(cls, keys: RotaryKeys, fast: int) -> _Start:
        n, planes = len(keys.gram), keys.gram.shape[1] // 2
        both, size = (2, planes), 2 * (planes - fast)
        weight = keys.weight.view(n, *both, *both)[:, :, fast:, :, fast:].reshape(n, size, size)
        gram = keys.gram.view(n, *both, n, *both)[:, :, fast:, :, :, fast:].reshape(n, size, n, size)
        return cls(keys, fast, Stack(weight, gram))

    def shared(self, groups: Sequence[tuple[int, ...]]) -> Tensor:
        """Give a first shared key for each group: [N, d, n, d]."""
        return torch.stack([self._shared(list(group)) for group in groups])

    def _shared(self, group: list[int]) -> Tensor:
        n, d, fast = len(group), self.keys.gram.shape[1], self.fast
        planes = d // 2
        mixing = self.keys.gram.new_zeros(d, n, d)
        overlap, size = self.keys.plane_overlap
        size = size[:fast, group]
        vector = torch.linalg.eigh(size[:, :, None] * overlap[:fast, group][:, :, group] * size[:, None])[1][..., -1]
        scalar = (vector.conj() * size).T  # [n, fast]
        turned = from_planes(torch.diag_embed(scalar), torch.zeros_like(torch.diag_embed(scalar)))
        fast_rows = torch.cat([torch.arange(fast), planes + torch.arange(fast)])
        slow_rows = torch.cat([torch.arange(fast, planes), planes + torch.arange(fast, planes)])
        mixing[fast_rows[:, None, None], torch.arange(n)[:, None], fast_rows] = turned.transpose(0, 1)
        if len(slow_rows):
            part, _ = self.slow.share(group)
            mixing[slow_rows[:, None, None], torch.arange(n)[:, None], slow_rows] = part
        return mixing


def _starts(turning: int) -> list[int]:
    """Numbers of fast planes to try: all that turn, and three quarters of them. Fewer were not better on any text."""
    return [turning, turning * 3 // 4]


def _sweep(groups: _Groups, mixing: Tensor, sweeps: int) -> _Fit:
    """At most `sweeps` alternations: the shared keys, the query maps that go with them, and what they lose.

    Each goes on past its closed form by Nesterov's momentum, which is dropped where it made a group lose more
    (Mitchell, Ye & De Sterck 2020, of tensor decompositions): 30 come further than 60 without. They end when no group
    gains.
    """
    mixing, cross = groups.normalised(mixing)
    maps, residual = groups.query_maps(mixing, cross)
    best, before, age = (mixing, maps, residual), mixing, torch.zeros_like(residual)
    for _ in range(sweeps):
        step = groups.shared_key(maps)
        age = age + 1
        ahead = step + momentum(age)[:, None, None, None] * (step - before)
        mixing, cross = groups.normalised(ahead)
        maps, now = groups.query_maps(mixing, cross)
        age = torch.where(now > residual, 0, age)
        settled = bool(((residual - now).abs() <= _SETTLED * now).all())
        before, residual = step, now
        best = better((mixing, maps, now), best)
        if settled:
            break
    return best


def momentum(age: Tensor) -> Tensor:
    """Give how far an alternation goes on, as a share of its step, `age` of them after the last start: 0 at first."""
    return (age - 1) / (age + 2)


def better(new: _Fit, old: _Fit) -> _Fit:
    """Give of two fits of the same groups the one that loses less of each; the new one where both lose the same."""
    gains = new[-1] <= old[-1]
    if bool(gains.all()):
        return new
    pairs = zip(new, old, strict=True)
    mixing, maps, lost = (torch.where(gains.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs)
    return mixing, maps, lost


def _at_once(keys: RotaryKeys, group: tuple[int, ...]) -> int:
    return max(1, _BATCH_NUMBERS // (len(group) * keys.gram.shape[1]) ** 2)


def rotary_residuals(keys: RotaryKeys, groups: list[tuple[int, ...]], sweeps: int = 2) -> list[float]:
    """Tell how much each candidate group would lose, after a short fit; groups of one size only."""
    at_once = _at_once(keys, groups[0])
    residuals: list[float] = []
    for begin in range(0, len(groups), at_once):
        batch = groups[begin : begin + at_once]
        residuals += _sweep(_Groups.of(keys, batch), keys.coarse.shared(batch), sweeps)[2].tolist()
    return residuals


def fit_rotary(keys: RotaryKeys, groups: list[tuple[int, ...]], sweeps: int = 30) -> list[tuple[Tensor, Tensor]]:
    """Give the shared key of each group and the query map of each of its query heads; groups of one size only.

    Several starts are tried for a few sweeps; the best goes on, until `sweeps` or until it gains no more.

    Returns:
        mixing [d, n, d] (K = sum_k mixing[:, k] @ Wk_k) and maps [m, d, d] (Wq'_i = maps[i] @ Wq_i).
    """
    at_once, found = _at_once(keys, groups[0]), list[tuple[Tensor, Tensor]]()
    # one after the other, as each holds a part of the Gram matrix
    starts = [_Start.of(keys, fast).shared(groups) for fast in _starts(keys.turning)]
    for begin in range(0, len(groups), at_once):
        parts = _Groups.of(keys, groups[begin : begin + at_once])
        tried = [_sweep(parts, start[begin : begin + at_once], 4) for start in starts]
        mixing, _, _ = reduce(better, tried)
        found += list(zip(*_sweep(parts, mixing, sweeps)[:2], strict=True))
    return found
