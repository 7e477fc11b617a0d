"""Linear algebra at size: forms that cost less give what the plain ones give."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from convert_attn.convert.maths import rotary_key, shared_key
from convert_attn.convert.maths.latent_basis import Latent, Reading, fit_latent, largest
from convert_attn.convert.maths.moments import Moments, gram, moments_from_norm, own_gram, weighed_sum
from convert_attn.convert.maths.rotary import MeanConjugation, RotaryPlanes, characteristic, measured_offsets
from convert_attn.convert.maths.rotary_key import SharedRotaryKey, fit_shared_rotary_key
from convert_attn.convert.maths.shared_key import RotaryKeys, fit_rotary, rotary_residuals

HEADS, SIZE, HIDDEN = 12, 64, 160
FULL = ("known by the norm", "known by text")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def text_moments(hidden: int, seed: int) -> Moments:
    """As of text: one direction has half of the energy, the others less and less."""
    sizes = torch.arange(1, hidden + 1, dtype=torch.float64).pow(-0.7)
    sizes[0] = sizes[1:].square().sum().sqrt()
    turned = torch.linalg.qr(drawn(hidden, hidden, seed=7))[0]
    states = drawn(4 * hidden, hidden, seed=seed) * sizes @ turned
    return Moments(states.mean(0), states.T @ states / len(states))


def moments(kind: str) -> Moments:
    if kind == "known by text":
        return text_moments(HIDDEN, 1)
    return moments_from_norm(drawn(HIDDEN, seed=2).float(), drawn(HIDDEN, seed=3).float())


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", FULL)
def test_grams_are_the_expectation_of_the_product(kind: str, biased: bool) -> None:
    """HEADS heads of SIZE rows are more than are multiplied at once."""
    heads, bias = drawn(HEADS, SIZE, HIDDEN).float(), drawn(HEADS, SIZE, seed=1).float() if biased else None
    known = moments(kind)
    flat = heads.double().flatten(0, 1)
    shift = torch.zeros(len(flat), dtype=torch.float64) if bias is None else bias.double().flatten()
    mean = flat @ known.mean
    plain = flat @ known.matrix() @ flat.T + torch.outer(mean, shift) + torch.outer(shift, mean)
    plain = (plain + torch.outer(shift, shift)).view(HEADS, SIZE, HEADS, SIZE)
    found = gram(heads, bias, known)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10 * float(plain.abs().max()))
    own = own_gram(heads, bias, known)
    torch.testing.assert_close(own, plain.diagonal(0, 0, 2).permute(2, 0, 1), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("hidden", [HIDDEN, 1100])
def test_a_weighed_sum_is_the_sum(hidden: int) -> None:
    """1100 columns are more than are made at once, 10 parts of 60 rows more than go into one product."""
    weights, rows = drawn(10, 60, 60), drawn(10, 60, hidden, seed=1)
    weights = weights @ weights.mT
    found = weighed_sum(zip(weights, rows, strict=True))
    plain = torch.einsum("nab,nax,nby->xy", weights, rows, rows)
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9 * float(plain.abs().max()))
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-12 * float(found.abs().max()))


# --- the largest eigenvalues


def spectrum(kind: str, size: int) -> Tensor:
    """[size, size], positive semidefinite; "falling" over twelve powers of ten."""
    rows = drawn(2 * size, size, seed=8)
    if kind == "falling":
        rows = rows * torch.logspace(0, -6, size, dtype=torch.float64)
    return rows.T @ rows


@pytest.mark.parametrize("kind", ["flat", "falling"])
@pytest.mark.parametrize("rank", [64, 256, 700])
def test_the_largest_eigenvalues_leave_out_what_exact_ones_do(kind: str, rank: int) -> None:
    matrix = spectrum(kind, 1024)
    values, vectors = largest(matrix, rank)
    exact = torch.linalg.eigvalsh(matrix)
    left_out = float(exact[:-rank].sum())
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-10)
    assert bool((values.diff() <= 0).all())
    assert float(matrix.trace() - values.sum()) == pytest.approx(left_out, rel=1e-6)
    assert float(matrix.trace() - (vectors * (matrix @ vectors)).sum()) == pytest.approx(left_out, rel=1e-6)


def test_a_latent_of_nothing_is_nothing() -> None:
    values, _ = largest(torch.zeros(8, 8, dtype=torch.float64), 3)
    assert values.tolist() == [0, 0, 0]


# --- the latent in two metrics


def lost(latent: Latent, keys: Reading, values: Reading) -> float:
    total = 0.0
    for reading, up in ((keys, latent.up_k), (values, latent.up_v)):
        missed = torch.eye(len(up), dtype=torch.float64) - up @ latent.down
        total += float((reading.weight @ missed @ reading.moments.matrix() @ missed.T).trace())
    return total


def plainly_alternated(start: Tensor, keys: Reading, values: Reading, sweeps: int) -> Latent:
    """The same least squares without any change of coordinates: `down` by one large linear system."""
    second_k, second_v = keys.moments.matrix(), values.moments.matrix()

    def out(down: Tensor, second: Tensor) -> Tensor:
        return second @ down.T @ torch.linalg.inv(down @ second @ down.T)

    down = start
    for _ in range(sweeps):
        up_k, up_v = out(down, second_k), out(down, second_v)
        wanted = up_k.T @ keys.weight @ second_k + up_v.T @ values.weight @ second_v
        system = torch.kron(up_k.T @ keys.weight @ up_k, second_k) + torch.kron(up_v.T @ values.weight @ up_v, second_v)
        down = torch.linalg.solve(system, wanted.flatten()).view_as(down)
        down = torch.linalg.qr(down.T)[0].T
    return Latent(down, out(down, second_k), out(down, second_v))


@pytest.mark.parametrize("rank", [3, 9])
def test_a_latent_in_two_metrics_is_that_of_plain_least_squares(rank: int) -> None:
    hidden = 24
    readings = []
    for seed in (1, 2):
        rows = drawn(40, hidden, seed=seed + 10)
        readings.append(Reading(rows.T @ rows, text_moments(hidden, seed)))
    keys, values = readings
    start = fit_latent(keys, values, rank, 0).down
    assert lost(fit_latent(keys, values, rank, 4), keys, values) == pytest.approx(
        lost(plainly_alternated(start, keys, values, 4), keys, values), rel=1e-6
    )


def test_a_latent_settles_where_more_sweeps_would_end() -> None:
    rows = [drawn(80, 48, seed=seed) for seed in (5, 6)]
    keys, values = (Reading(part.T @ part, text_moments(48, seed)) for seed, part in enumerate(rows))
    assert lost(fit_latent(keys, values, 12, 20), keys, values) == pytest.approx(
        lost(fit_latent(keys, values, 12, 400), keys, values), rel=1e-3
    )


# --- shared keys under rotary position


@cache
def rotary_keys(queries_per_key: int = 1) -> RotaryKeys:
    hidden, size, keys = 96, 16, 8
    known = text_moments(hidden, 3)
    queries, heads = drawn(keys * queries_per_key, size, hidden, seed=4), drawn(keys, size, hidden, seed=5)
    looks = drawn(len(queries), 64, seed=6).abs().pow(3) / (1 + torch.arange(64))
    return RotaryKeys(
        queries=own_gram(queries, None, known),
        gram=gram(heads, None, known),
        rotary=RotaryPlanes(1.0 / 10000 ** (torch.arange(0, size, 2).double() / size)),
        offsets=measured_offsets(looks, 256, 0.01),
        damping=1e-9,
    )


def missed(keys: RotaryKeys, group: tuple[int, ...], fit: tuple[Tensor, Tensor]) -> float:
    """sum_i E |q^T R k - (T q)^T R K y|^2, expectation by expectation."""
    mixing, maps = fit
    n = keys.queries_per_key
    index = [head * n + query for head in group for query in range(n)]
    turn, own = keys.turn.heads(torch.tensor(index)), keys.gram[list(group)][:, :, list(group)]
    cross = torch.einsum("arb,rbkc->kac", mixing, own).repeat_interleave(n, 0)
    shared = torch.einsum("kac,bkc->ab", torch.einsum("arb,rbkc->kac", mixing, own), mixing)
    target = turn(own.diagonal(0, 0, 2).permute(2, 0, 1).repeat_interleave(n, 0), inverse=True)
    against = turn(cross, inverse=True)
    seen = turn(shared.expand(len(index), -1, -1), inverse=True)
    error = target - against.mT @ maps - maps.mT @ against + maps.mT @ seen @ maps
    return float((keys.queries[index] * error).sum())


@pytest.mark.parametrize("queries_per_key", [1, 2])
def test_groups_fitted_together_are_as_good_as_each_alone(queries_per_key: int) -> None:
    keys, groups = rotary_keys(queries_per_key), [(0, 1, 2, 3), (4, 5, 6, 7)]
    together = [missed(keys, group, fit) for group, fit in zip(groups, fit_rotary(keys, groups), strict=True)]
    alone = [missed(keys, group, fit_rotary(keys, [group])[0]) for group in groups]
    assert together == pytest.approx(alone, rel=1e-3)


def test_a_fit_ends_where_more_sweeps_gain_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, group = rotary_keys(), (0, 2, 4, 6)
    settled = missed(keys, group, fit_rotary(keys, [group])[0])
    monkeypatch.setattr(shared_key, "_SETTLED", -1.0)
    assert settled <= 1.01 * missed(keys, group, fit_rotary(keys, [group])[0])


def still(age: Tensor) -> Tensor:
    """No momentum."""
    return torch.zeros_like(age)


def test_momentum_comes_further_in_half_the_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, groups = rotary_keys(), [(0, 2, 4, 6), (1, 3, 5, 7)]
    found = [missed(keys, group, fit) for group, fit in zip(groups, fit_rotary(keys, groups, 30), strict=True)]
    monkeypatch.setattr(shared_key, "momentum", still)
    plain = [missed(keys, group, fit) for group, fit in zip(groups, fit_rotary(keys, groups, 60), strict=True)]
    assert sum(found) <= sum(plain)


def test_momentum_that_makes_a_group_worse_is_not_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, groups = rotary_keys(), [(0, 2, 4, 6), (1, 3, 5, 7)]
    start = rotary_residuals(keys, groups, 0)
    monkeypatch.setattr(shared_key, "momentum", lambda age: torch.full_like(age, 30.0))
    assert all(far <= near for far, near in zip(rotary_residuals(keys, groups, 30), start, strict=True))


def test_planes_that_do_not_turn_are_not_among_the_fast() -> None:
    keys = rotary_keys()
    frequencies = torch.where(torch.arange(8) < 2, keys.rotary.inv_freq, 0)
    partial = replace(keys, rotary=RotaryPlanes(frequencies))
    assert (keys.turning, partial.turning) == (8, 2)
    for group in [(0, 1, 2, 3), (4, 5, 6, 7)]:
        short, long = (missed(partial, group, fit_rotary(partial, [group], sweeps)[0]) for sweeps in (2, 60))
        assert short <= 1.05 * long


def turning_missed(keys: RotaryKeys, fit: SharedRotaryKey) -> float:
    """The part of the scores' error that varies with the offset, but for what is the same whatever the fit."""
    own = keys.rotary.inv_freq.double()

    def turn(left: Tensor, right: Tensor) -> MeanConjugation:
        means = characteristic(keys.offsets, left)[:, :, None], characteristic(keys.offsets, right)[:, None]
        minus = characteristic(keys.offsets, left[:, None] - right[None]) - means[0] * means[1].conj()
        return MeanConjugation(minus, characteristic(keys.offsets, left[:, None] + right[None]) - means[0] * means[1])

    cross = torch.einsum("rkd,kdle->lre", fit.mixing, keys.gram)
    shared = torch.einsum("rkd,kdle,sle->rs", fit.mixing, keys.gram, fit.mixing)
    against = turn(fit.inv_freq, own)(cross[keys.key_of], inverse=True)
    seen = turn(fit.inv_freq, fit.inv_freq)(shared[None], inverse=True)
    error = fit.maps.mT @ seen @ fit.maps - 2 * against.mT @ fit.maps
    return float((keys.queries * error).sum())


def test_momentum_of_a_shared_rotary_key_comes_as_far_in_fewer_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = rotary_keys()
    found = turning_missed(keys, fit_shared_rotary_key(keys, 16))
    monkeypatch.setattr(rotary_key, "momentum", still)
    start, plain = (turning_missed(keys, fit_shared_rotary_key(keys, 16, sweeps=n)) for n in (0, 20))
    assert found < start < 0
    assert found <= plain + 1e-4 * abs(plain - start)


def test_residuals_of_candidates_are_what_is_missed() -> None:
    """From one start, and but for the damping: the best of several misses no more, and not much less."""
    keys, groups = rotary_keys(), [(0, 1), (2, 5), (3, 7)]
    for found, group in zip(rotary_residuals(keys, groups, 60), groups, strict=True):
        best = missed(keys, group, fit_rotary(keys, [group], 60)[0])
        assert 0.99 * best <= found <= 1.1 * best
    assert rotary_residuals(keys, groups[::-1]) == pytest.approx(rotary_residuals(keys, groups)[::-1], rel=1e-9)
