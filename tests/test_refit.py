"""Layers solved anew on text: the algebra on small layers, and what it must not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from convert_attn.convert.fitting import attention_sample
from convert_attn.convert.fitting.attention_refit import LayerRefit
from convert_attn.convert.fitting.attention_sample import Batch, Sample, sample_original, sampled_rows
from convert_attn.convert.maths.conjugate_gradients import conjugate_gradients
from convert_attn.convert.maths.output_ridge import Regression, solve
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import Attention, Rule, across
from convert_attn.convert.weights.latent import LatentWeights

D, H, K, SIZE, LENGTH, WINDOWS = 24, 4, 2, 6, 20, 12
_TURNS = torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64)
RULES = {
    "rotary": Rule(scale=SIZE**-0.5, inv_freq=_TURNS),
    "rotary, window": Rule(scale=SIZE**-0.5, inv_freq=_TURNS, rotary_scale=1.1, window=7),
    "none": Rule(scale=SIZE**-0.5),
    "across": Rule(scale=SIZE**-0.5, causal=False, across=True),
    "slopes": Rule(scale=SIZE**-0.5, slopes=torch.tensor([0.5, 0.1, 0.02, 0.3])),
}


def heads(bias: bool = False, groups: int = K) -> AttentionWeights:
    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape) / D**0.5

    found = AttentionWeights(q=rows(H, SIZE, D), k=rows(groups, SIZE, D), v=rows(groups, SIZE, D), o=rows(H, D, SIZE))
    if not bias:
        return found
    return replace(found, q_bias=rows(H, SIZE), k_bias=rows(groups, SIZE), v_bias=rows(groups, SIZE), o_bias=rows(D))


def latent(rotary: bool) -> LatentWeights:
    turning = 2 if rotary else 0
    return LatentWeights(
        q_nope=torch.randn(H, SIZE, D) / D**0.5,
        q_rope=torch.randn(H, turning, D) / D**0.5,
        down=torch.randn(8, D) / D**0.5,
        k_rope=torch.randn(turning, D) / D**0.5,
        up_k=torch.randn(H, SIZE, 8) / 8**0.5,
        up_v=torch.randn(H, SIZE, 8) / 8**0.5,
        o=torch.randn(H, D, SIZE) / D**0.5,
        inv_freq=torch.tensor([0.3] * (turning // 2), dtype=torch.float64),
    )


def seen(original: AttentionWeights, x: Tensor, rule: Rule) -> Batch:
    """What both read, the same here, with what the original makes of it."""
    side = across(torch.randn(len(x), LENGTH - 5, D)) if rule.across else None
    output = Attention(original, x, rule, side).output()
    after = torch.randn_like(output) + output
    return Batch(original=x, converted=x, output=output, attended=after, side=side)


def layer(weights: AttentionWeights | LatentWeights, original: AttentionWeights, rule: Rule) -> LayerRefit:
    batches = [seen(original, x, rule) for x in torch.randn(WINDOWS, LENGTH, D).split(6)]
    sample: Sample = sample_original(original, batches, rule, range(H))
    moment = torch.eye(D, dtype=torch.float64)
    return LayerRefit(weights=weights, sample=sample, rule=rule, tokens=moment, key_tokens=moment, value_tokens=moment)


def output_error(weights: AttentionWeights | LatentWeights, made: LayerRefit) -> float:
    total = 0.0
    for tile in made.sample.tiles:
        side = across(made.sample.looked_at[tile.batch]) if made.rule.across else None
        found = Attention(weights, made.sample.inputs[tile.batch], made.rule, side).output()[:, tile.rows]
        total += float((found - tile.output).square().sum())
    return total


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["heads", "biased", "latent"])
def test_what_a_projection_gives_and_what_it_is_pulled_by_are_transposes(form: str, rule: str) -> None:
    rotary = rule not in ("none", "across")
    weights = latent(rotary) if form == "latent" else heads(form == "biased")
    made = layer(weights, heads(), RULES[rule])
    parts = [(part, made.sample.tiles[0]) for part in made._parts.queries()]
    for part, tile in [*parts, *((part, None) for part in (*made._parts.keys(), made._parts.values()))]:
        change = torch.randn_like(part.weight)
        given = part.given(change, 0, tile)
        states = torch.randn_like(given)
        torch.testing.assert_close(
            (given * states).sum(), (change * part.pulled(states, 0, tile)).sum(), rtol=1e-3, atol=1e-2
        )


def test_tiles_are_the_whole_attention_cut_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are cut, all queries are there once, with all that they may look at."""
    monkeypatch.setattr(attention_sample, "_TILE_ROWS", 3)
    original, x = heads(), torch.randn(2, LENGTH, D)
    for rule in RULES.values():
        batch = seen(original, x, rule)
        sample = sample_original(original, [batch], rule, range(H))
        whole = torch.cat([part for _, part in Attention(original, x, rule, batch.side).probabilities()], 1)
        rows = torch.cat([tile.positions for tile in sample.tiles])
        assert torch.equal(rows, torch.arange(LENGTH))
        for tile in sample.tiles:
            assert torch.equal(tile.positions, torch.arange(LENGTH)[tile.rows])
            assert not whole[:, :, tile.rows, tile.length :].any()
            torch.testing.assert_close(tile.importance, whole[:, :, tile.rows, : tile.length])
            torch.testing.assert_close(tile.output, batch.output[:, tile.rows])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_that_is_right_stays_as_it_is(rule: str, bias: bool) -> None:
    weights = heads(bias)
    made = layer(weights, weights, RULES[rule])
    x = made.sample.inputs[0]
    before = Attention(weights, x, RULES[rule]).output()
    after = Attention(made.run(), x, RULES[rule]).output()
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["heads", "biased", "latent"])
def test_a_layer_that_is_off_comes_nearer(form: str, rule: str) -> None:
    original = heads(form == "biased")
    weights = latent(rule != "none") if form == "latent" else replace(original, q=original.q + heads().q, v=heads().v)
    made = layer(weights, original, RULES[rule])
    before = output_error(weights, made)
    assert output_error(made.run(), made) < 0.5 * before


def test_heads_that_changed_places_are_held_against_their_own() -> None:
    original, order = heads(), [2, 3, 0, 1]
    moved = replace(original, q=original.q[order], o=original.o[order], k=original.k[[1, 0]], v=original.v[[1, 0]])
    x = torch.randn(WINDOWS, LENGTH, D)
    sample = sample_original(original, [seen(original, x, RULES["rotary"])], RULES["rotary"], order)
    moment = torch.eye(D, dtype=torch.float64)
    after = LayerRefit(
        weights=moved, sample=sample, rule=RULES["rotary"], tokens=moment, key_tokens=moment, value_tokens=moment
    ).run()
    assert isinstance(after, AttentionWeights)
    torch.testing.assert_close(after.q, moved.q, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("windows", "length", "heads"), [(1, 2, 1), (4, 64, 9), (60, 512, 64), (1, 8192, 32)])
def test_sampled_queries_lie_in_the_window_and_reach_its_end(windows: int, length: int, heads: int) -> None:
    rows = torch.arange(length)[sampled_rows(windows, length, heads)]
    assert len(rows) == len(set(rows.tolist())) > 0
    assert int(rows.min()) >= 0
    assert length - (length // len(rows) + 1) <= int(rows.max()) < length


def test_conjugate_gradients_solve_small_systems() -> None:
    root = torch.randn(6, 6)
    matrix = root @ root.T + torch.eye(6)
    right = [torch.randn(6)]
    (found,) = conjugate_gradients(lambda x: [matrix @ x[0]], right, lambda r: [r[0] / matrix.diagonal()], 12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right[0]), rtol=1e-3, atol=1e-4)
    (nothing,) = conjugate_gradients(lambda x: [matrix @ x[0]], [torch.zeros(6)], lambda r: r, 5)
    assert not nothing.any()


def _text(count: int, map_: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    features = torch.randn(count, len(map_), dtype=torch.float64)
    return features, features @ map_, noise * torch.randn(count, map_.shape[1], dtype=torch.float64)


def test_what_a_layer_cannot_know_is_not_fitted() -> None:
    """What the layer has lost is linear in its heads, what the stream brings along is noise."""
    map_ = torch.randn(30, 5, dtype=torch.float64)
    texts = {name: _text(count, map_, 3.0) for name, count in (("fit", 60), ("selection", 60), ("new", 2000))}
    sums = {name: Regression() for name in texts}
    for name, (features, own, noise) in texts.items():
        sums[name].add(features, own, noise, torch.full_like(own, 100.0), biased=False)
    change = solve(sums["fit"], sums["selection"], 30)
    together = torch.linalg.solve(sums["fit"].sums[0], sums["fit"].sums[1] + sums["fit"].sums[2])
    features, own, noise = texts["new"]
    errors = [float((own + noise - features @ c).square().mean()) for c in (change, together, torch.zeros_like(change))]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 1.1 * float(noise.square().mean()) + 0.05 * errors[2]


def test_a_bias_is_not_held_back() -> None:
    features = torch.randn(200, 4, dtype=torch.float64)
    own = torch.full((200, 3), 2.0, dtype=torch.float64)
    sums = [Regression(), Regression()]
    for regression in sums:
        regression.add(features, own, torch.zeros_like(own), torch.full_like(own, 50.0), biased=True)
    change = solve(sums[0], sums[1], 4)
    torch.testing.assert_close(change[4], torch.full((3,), 2.0, dtype=torch.float64), rtol=0.05, atol=0.05)
