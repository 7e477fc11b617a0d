"""Which of the slots of a latent sequence become one, and what they become; see latent_sequence.py.

Letters in shapes:
    B  batch                    M  entries that are given, in order: the slots there are, then what leaves the window
    G  key/value heads          N  slots that are wanted
    d  size of one head         P  N + 1
"""

from dataclasses import dataclass

import torch

POSITION, MASS, RECEIVED, LAST = 0, 1, 2, 3  # of what is known of an entry; LAST: how many there are
_LEAST = 1e-6  # received attention that everything has: among what nobody looked at distance decides


@dataclass(frozen=True)
class MergeRule:
    """What a layer's merging weighs, each from 0 to 1; what is not 0 was chosen on text.

    Attributes:
        turned_key: share in a merged key of the mean of keys as they are turned, which gives the mean of scores; the
            rest: the mean of keys before their rotation, turned to the mean position, which keeps more of its length.
        received_value: share of the mean by received attention in a merged value; the rest: the mean by mass.
    """

    turned_key: float = 0.0
    received_value: float = 0.0

    def __post_init__(self) -> None:
        found = (self.turned_key, self.received_value)
        if not all(0 <= share <= 1 for share in found):
            raise ValueError(f"the two shares of a layer in cache_merging must be from 0 to 1, got {[*found]}")


@dataclass(frozen=True)
class SlotSizes:
    """How many first tokens, slots and last tokens there are, and how slots are merged."""

    sinks: int
    slots: int
    window: int
    rule: MergeRule = MergeRule()

    @property
    def whole(self) -> int:
        """Tokens that fit."""
        return self.sinks + self.slots + self.window


def turned(keys: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, back: bool = False) -> torch.Tensor:
    """Turn keys [..., d] to positions [...], or back from them: the last 2 P dimensions for P frequencies.

    Dimension p of these turns with dimension p + P; in front of them is a latent, or nothing.
    """
    planes = len(inv_freq)
    angles = positions[..., None] * inv_freq.float()
    cos, sin = angles.cos(), -angles.sin() if back else angles.sin()
    still, first, second = keys.split([keys.shape[-1] - 2 * planes, planes, planes], -1)
    return torch.cat([still, first * cos - second * sin, second * cos + first * sin], -1)


def merge(
    keys: torch.Tensor,
    values: torch.Tensor,
    facts: torch.Tensor,
    *,
    slots: int,
    inv_freq: torch.Tensor,
    rule: MergeRule = MergeRule(),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge entries, keys and values [B, G, M, d] and facts [B, G, M, 3], to N = `slots` of them.

    The first N are taken as they are; each further one takes a place, and the pair of least cost becomes one.
    """
    pool = _Pool(keys, values, facts, slots=slots, inv_freq=inv_freq, rule=rule)
    for number in range(slots, keys.shape[2]):
        pool.add(number)
    kept_keys, kept_values, kept_facts = pool.entries()
    return kept_keys.to(keys.dtype), kept_values.to(values.dtype), kept_facts


class _Pool:
    """N + 1 places, one of them free. An entry is a row: key as it was turned, key unturned, value, facts, changed."""

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        facts: torch.Tensor,
        *,
        slots: int,
        inv_freq: torch.Tensor,
        rule: MergeRule,
    ) -> None:
        self.size, self.inv_freq, self.rule = keys.shape[3], inv_freq, rule
        plain = turned(keys.float(), facts[..., POSITION], inv_freq, back=True)
        unchanged = torch.zeros_like(facts[..., :1])
        self.coming = torch.cat([keys.float(), plain, values.float(), facts, unchanged], -1)
        self.rows = self.coming[:, :, : slots + 1].clone()
        self.free = torch.full(keys.shape[:2], slots, device=keys.device)  # [B, G]
        plain = self._plain(self.rows)
        far = torch.cdist(plain, plain, compute_mode="donot_use_mm_for_euclid_dist")
        self.distances = far.square()  # [B, G, P, P]
        self.distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)

    def _plain(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[..., self.size : 2 * self.size]

    def _fact(self, rows: torch.Tensor, fact: int) -> torch.Tensor:
        return rows[..., rows.shape[-1] - 1 - LAST + fact]

    def _row(self, place: torch.Tensor) -> torch.Tensor:
        """The entry at a place [B, G]: [B, G, 1, ...]."""
        index = place[..., None, None].expand(-1, -1, 1, self.rows.shape[-1])
        return self.rows.gather(2, index)

    def _put(self, place: torch.Tensor, row: torch.Tensor) -> None:
        """Write an entry [B, G, 1, ...] to a place [B, G], and how far it is from the others."""
        self.rows.scatter_(2, place[..., None, None].expand_as(row), row)
        far = (self._plain(self.rows) - self._plain(row)).square().sum(-1)  # [B, G, P]
        far.scatter_(2, place[..., None], torch.inf)
        self.distances.scatter_(2, place[..., None, None].expand(-1, -1, 1, far.shape[2]), far[:, :, None])
        self.distances.scatter_(3, place[..., None, None].expand(-1, -1, far.shape[2], 1), far[..., None])

    def add(self, number: int) -> None:
        """Let the entry of that number take the free place, and merge a pair."""
        self._put(self.free, self.coming[:, :, number : number + 1])
        first, second = self._pair()
        self._put(first, self._joined(self._row(first), self._row(second)))
        self.free = second

    def _pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The places [B, G] of the two that lose least by becoming one; padding loses nothing."""
        weights = self._fact(self.rows, RECEIVED) + _LEAST
        empty = self._fact(self.rows, MASS) == 0
        costs = self.distances / (1 / weights[..., :, None] + 1 / weights[..., None, :])
        costs.masked_fill_((empty[..., :, None] | empty[..., None, :]) & costs.isfinite(), -1.0)
        found = costs.flatten(2).argmin(-1)
        return found // costs.shape[-1], found % costs.shape[-1]

    def _joined(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Two entries as one, [B, G, 1, ...]."""
        masses = [self._fact(row, MASS)[..., None] for row in (one, other)]
        weights = [
            (self._fact(row, RECEIVED)[..., None] + _LEAST) * (mass > 0)
            for row, mass in zip((one, other), masses, strict=True)
        ]
        both = (masses[0] > 0) & (masses[1] > 0)
        share = (weights[0] / (weights[0] + weights[1]).clamp_min(1e-30)).masked_fill(masses[1] == 0, 1.0)
        by_mass = (masses[0] / (masses[0] + masses[1]).clamp_min(1e-30)).masked_fill(masses[1] == 0, 1.0)
        by_mass = torch.lerp(by_mass, share, self.rule.received_value)
        keys = share * one[..., : 2 * self.size] + (1 - share) * other[..., : 2 * self.size]
        start = one.shape[-1] - 1 - LAST
        values = by_mass * one[..., 2 * self.size : start] + (1 - by_mass) * other[..., 2 * self.size : start]
        position = share * self._fact(one, POSITION)[..., None] + (1 - share) * self._fact(other, POSITION)[..., None]
        received = self._fact(one, RECEIVED) + self._fact(other, RECEIVED)
        changed = torch.where(both, 1.0, share * one[..., -1:] + (1 - share) * other[..., -1:])
        return torch.cat([keys, values, position, masses[0] + masses[1], received[..., None], changed], -1)

    def entries(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give keys, values and facts of the N places that are taken."""
        last = self.rows[:, :, -1:]
        rows = self.rows.scatter(2, self.free[..., None, None].expand_as(last), last)[:, :, :-1]
        facts = rows[..., -1 - LAST : -1]
        keys = turned(self._plain(rows), facts[..., POSITION], self.inv_freq)
        keys = torch.lerp(keys, rows[..., : self.size], self.rule.turned_key)
        keys = torch.where(rows[..., -1:] > 0, keys, rows[..., : self.size])
        values = rows[..., 2 * self.size : rows.shape[-1] - 1 - LAST]
        return keys, values, facts.contiguous()


__all__ = ["LAST", "MASS", "POSITION", "RECEIVED", "MergeRule", "SlotSizes", "merge", "turned"]
