"""Which heads share: the balanced partition with the smallest total cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

from torch import Tensor

Group = tuple[int, ...]
Costs = Callable[[list[Group]], list[float]]

_EXHAUSTIVE = 200  # candidate groups up to which every one is simply evaluated first
_MOST = 2000  # evaluations of a partition's groups
_WORK = 12 * 10**8  # evaluations x (dimensions of a group)^3: a second or two on one core
_MOST_CHEAP = 200_000  # the same for affinities, which cost next to nothing
_SCREENED = 4  # exchanges of a pair of groups that are evaluated where the work does not allow all of them
_IMPROVEMENT = 1e-9


class _Memo:
    """Costs of groups, each evaluated once, in batches, at most `budget` of them."""

    def __init__(self, costs: Costs, budget: int) -> None:
        self._costs = costs
        self._known: dict[Group, float] = {}
        self.left = budget

    def __call__(self, groups: list[Group]) -> list[float]:
        fresh = sorted({g for g in groups if g not in self._known})
        if fresh:
            self._known.update(zip(fresh, self._costs(fresh), strict=True))
            self.left -= len(fresh)
        return [self._known[g] for g in groups]


def contiguous(num_heads: int, groups: int) -> list[Group]:
    """Give part range(num_heads) into neighbours, as averaged GQA does."""
    size = num_heads // groups
    return [tuple(range(g * size, (g + 1) * size)) for g in range(groups)]


def best_partition(num_heads: int, groups: int, head_dim: int, costs: Costs, affinity: Tensor) -> list[Group]:
    """Give the balanced partition of range(num_heads) into `groups` groups that costs least, by swap search.

    Few heads: every possible group is evaluated, and the search starts from the greedy choice among them. Many
    heads: it starts from the partition with the largest affinity within groups, which is cheap, and evaluates as
    many groups as the work allows: an evaluation grows with the cube of the group's dimensions, and their number
    shrinks with it. Where they are too few for all exchanges of all pairs of groups, each pair's best few by affinity
    are evaluated. Deterministic, so that the same checkpoint gives the same bytes.

    Args:
        head_dim: d.
        costs: the cost of each of a list of groups (sorted tuples of one size).
        affinity: [num_heads, num_heads] symmetric, how much two heads have in common.

    Returns:
        groups as sorted tuples, ordered by their first head.
    """
    size, plain = num_heads // groups, contiguous(num_heads, groups)
    if groups in (1, num_heads):
        return plain
    memo = _Memo(costs, min(_MOST, _WORK // (size * head_dim) ** 3))
    alike = _swap_search(plain, _Memo(_affinity_costs(affinity), _MOST_CHEAP))
    starts = [plain, alike]
    if comb(num_heads, size) <= _EXHAUSTIVE:
        starts.append(_greedy(num_heads, size, memo))
    best = min(starts, key=lambda partition: sum(memo(partition)))
    every = comb(groups, 2) * 2 * size * size
    return _swap_search(best, memo, None if memo.left >= every else _affinity_costs(affinity))


def _affinity_costs(affinity: Tensor) -> Costs:
    """Minus the affinity within a group."""
    table = affinity.tolist()
    return lambda groups: [-sum(table[i][j] for i, j in combinations(group, 2)) for group in groups]


def _greedy(num_heads: int, size: int, memo: _Memo) -> list[Group]:
    """The cheapest group first, then the cheapest of what is left."""
    candidates = list(combinations(range(num_heads), size))
    ranked = [group for _, group in sorted(zip(memo(candidates), candidates, strict=True))]
    chosen: list[Group] = []
    free = set(range(num_heads))
    for group in ranked:
        if free.issuperset(group):
            chosen.append(group)
            free.difference_update(group)
    return chosen


def _swap_search(partition: list[Group], memo: _Memo, cheap: Costs | None = None) -> list[Group]:
    """Best swap of each pair of groups, again and again until none helps or the budget is spent.

    Args:
        cheap: what swaps are chosen by that are evaluated; None: all are.
    """
    partition = list(partition)
    improved = True
    while improved and memo.left > 0:
        improved = False
        for a, b in combinations(range(len(partition)), 2):
            if memo.left <= 0:
                break
            left, right = _best_swap(partition[a], partition[b], memo, cheap)
            improved |= (left, right) != (partition[a], partition[b])
            partition[a], partition[b] = left, right
    return sorted(partition)


def _best_swap(left: Group, right: Group, memo: _Memo, cheap: Costs | None) -> tuple[Group, Group]:
    """The pair itself, or the best exchange of one head each that makes it clearly cheaper."""
    swaps = [(tuple(sorted({*left, j} - {i})), tuple(sorted({*right, i} - {j}))) for i in left for j in right]
    if cheap is not None:
        swaps = sorted(swaps, key=lambda pair: sum(cheap([*pair])))[:_SCREENED]
    pairs = [(left, right), *swaps]
    flat = memo([group for pair in pairs for group in pair])
    totals = [flat[2 * n] + flat[2 * n + 1] for n in range(len(pairs))]
    best = min(range(len(pairs)), key=totals.__getitem__)
    return pairs[best] if totals[best] < totals[0] - _IMPROVEMENT * abs(totals[0]) else pairs[0]
