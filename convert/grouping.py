"""Which heads share: the balanced partition with the smallest total cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

Group = tuple[int, ...]
Costs = Callable[[list[Group]], list[float]]

_EXHAUSTIVE = 200  # candidate groups up to which every one is simply evaluated first
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


def best_partition(num_heads: int, groups: int, costs: Costs, budget: int = 2000) -> list[Group]:
    """The balanced partition of range(num_heads) into `groups` groups that costs least, by swap search.

    Starts from the contiguous partition (heads in their own order) and swaps pairs of heads between groups
    until no swap helps, or `budget` distinct groups have been evaluated: deterministic, so that the same
    checkpoint gives the same bytes. For small head counts every group is evaluated, which makes the costs
    exact, and the search starts from the greedy choice too.

    Args:
        costs: the cost of each of a list of groups (sorted tuples of one size).

    Returns:
        groups as sorted tuples, ordered by their first head.
    """
    size = num_heads // groups
    contiguous = [tuple(range(g * size, (g + 1) * size)) for g in range(groups)]
    if groups in (1, num_heads):
        return contiguous
    memo = _Memo(costs, budget)
    starts = [contiguous]
    if comb(num_heads, size) <= _EXHAUSTIVE:
        starts.append(_greedy(num_heads, size, memo))
    found = [_swap_search(start, memo) for start in starts]
    return min(found, key=lambda partition: sum(memo(partition)))


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


def _swap_search(partition: list[Group], memo: _Memo) -> list[Group]:
    """Best swap of each pair of groups, again and again until none helps or the budget is spent."""
    partition = list(partition)
    improved = True
    while improved and memo.left > 0:
        improved = False
        for a, b in combinations(range(len(partition)), 2):
            if memo.left <= 0:
                break
            left, right = _best_swap(partition[a], partition[b], memo)
            improved |= (left, right) != (partition[a], partition[b])
            partition[a], partition[b] = left, right
    return sorted(partition)


def _best_swap(left: Group, right: Group, memo: _Memo) -> tuple[Group, Group]:
    """The pair itself, or the best exchange of one head each that makes it clearly cheaper."""
    pairs = [(left, right)]
    for i in left:
        for j in right:
            pairs.append(
                (tuple(sorted({*left, j} - {i})), tuple(sorted({*right, i} - {j}))),
            )
    flat = memo([group for pair in pairs for group in pair])
    totals = [flat[2 * n] + flat[2 * n + 1] for n in range(len(pairs))]
    best = min(range(len(pairs)), key=totals.__getitem__)
    return pairs[best] if totals[best] < totals[0] * (1 - _IMPROVEMENT) else pairs[0]
