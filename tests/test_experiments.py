"""The experimental targets, found by discovery: exact at the start, or while a text fits; and what they do beyond."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Command, config_of, save_tiny, tensors_of
from families import build
from tiny import SIZES, load, tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from convert_attn import UsageError, convert, heal, inspect
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.fitting.slot_rules import ASKED, RULES, rule_errors
from convert_attn.convert.progress import silent
from convert_attn.convert.targets import targets
from convert_attn.convert.targets.base import Experiment, Target
from convert_attn.convert.verification.folder import verify
from convert_attn.eval.measures.decoding import cache_of, with_cache
from convert_attn.modeling.latent_sequence import LatentSequenceCache, SlotLayer
from convert_attn.modeling.slot_merging import LAST, MASS, RECEIVED, MergeRule, merge, turned

SLOTS = 8
FOUND = [target for target in targets() if target.experiment is not None]


def experiment(target: Target) -> Experiment:
    assert target.experiment is not None
    return target.experiment


GATED = [target for target in FOUND if not experiment(target).facts]
SLOTTED = [target for target in FOUND if experiment(target).facts]
LATENTS = [target for target in FOUND if target.form is LatentCache]
UNCHANGED = [target for target in FOUND if target not in LATENTS]  # every weight of the source is there as it was
by_name = {"ids": lambda target: target.name}
CHOSEN = (0.5, 1.0)  # shares of a MergeRule as text may choose them
by_rule = pytest.mark.parametrize("rule", [(), CHOSEN], ids=["the rule", "a chosen one"])


def options(target: Target) -> dict[str, Any]:
    return {"to": experiment(target).to} | ({"slots": SLOTS} if experiment(target).facts else {})


def source_type(target: Target) -> str:
    return min(target.sources)


def ids(batch: int = 2, length: int = 40) -> Tensor:
    return torch.randint(1, 97, (batch, length), generator=torch.Generator().manual_seed(1))


@cache
def made(name: str) -> tuple[Any, Any]:
    """The original and a model of the experimental class with its weights, and a gate that does something."""
    target = next(target for target in FOUND if target.name == name)
    if target in LATENTS:
        original = build(str(target.becomes).removesuffix("_slots"), vocab_size=97)
    else:
        original = tiny_model(source_type(target), kv_heads=4, initializer_range=0.2)
    sizes = experiment(target).facts and {"cache_slots": SLOTS}
    config = original.config.to_dict() | {"model_type": target.becomes} | (sizes or {})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    model.load_state_dict(original.state_dict(), strict=False)
    return original, model


def stepwise(model: Any, tokens: Tensor, pieces: list[int], padding: int = 0) -> tuple[Tensor, Any]:
    """Logits of tokens that come in pieces, and the cache."""
    held: Any = None
    given, at = [], 0
    mask = torch.ones_like(tokens)
    mask[:, :padding] = 0
    for piece in pieces:
        known = {} if held is None else with_cache(model, held)
        if padding:
            positions = (mask.cumsum(1) - 1).clamp_min(0)[:, at : at + piece]
            known |= {"attention_mask": mask[:, : at + piece], "position_ids": positions}
        with torch.no_grad():
            out = model(tokens[:, at : at + piece], use_cache=True, **known)
        held, at = cache_of(out), at + piece
        given.append(out.logits)
    return torch.cat(given, 1), held


# --- through the conversion


@pytest.mark.parametrize("target", UNCHANGED, **by_name)
def test_a_conversion_is_the_original_bit_for_bit_and_says_that_it_is_experimental(
    target: Target, tmp_path: Path
) -> None:
    source = save_tiny(tmp_path / "in", source_type(target))
    result = convert(source, **options(target), output=tmp_path / "out")
    assert any("is experimental" in warning for warning in result.warnings)
    assert "experimental" in (result.output / "README.md").read_text()
    before, after = load(source), load(result.output)
    assert type(after).__name__ == target.classes[type(before).__name__]
    assert isinstance(AutoModel.from_pretrained(result.output), type(after.model))
    tokens = ids(length=12)
    assert torch.equal(after(tokens).logits, before(tokens).logits)
    written = [model.generate(tokens, max_new_tokens=6, do_sample=False) for model in (before, after)]
    assert torch.equal(*written)
    after.save_pretrained(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again")(tokens).logits, before(tokens).logits)
    old, new = tensors_of(source), tensors_of(result.output)
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    assert all(not new[name].any() for name in new.keys() - old.keys())


@pytest.mark.parametrize("target", LATENTS, **by_name)
def test_a_latent_with_slots_is_the_latent_without_while_a_text_fits(target: Target, tmp_path: Path) -> None:
    source, tokens = save_tiny(tmp_path / "in", source_type(target)), ids(length=12)
    latent: dict[str, Any] = {"to": "mla", "rank": 24, "rope_dim": 8, "calibration": None, "measure": False}
    plain = convert(source, **latent, output=tmp_path / "plain").output
    result = convert(source, **latent, slots=SLOTS, output=tmp_path / "out")
    assert any("--to mla --slots is experimental" in warning for warning in result.warnings)
    assert "Every tensor of the source" not in (result.output / "README.md").read_text()
    old, new = tensors_of(plain), tensors_of(result.output)
    assert old.keys() == new.keys()
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    before, after = load(plain), load(result.output)
    assert torch.equal(after(tokens).logits, before(tokens).logits)
    assert config_of(result.output)["cache_slots"] == SLOTS
    assert config_of(result.output).get("cache_merging") is None  # no text
    assert verify(result.output, source).figures["around_attention"] == 0
    with pytest.raises(UsageError, match="has no class for gpt2"):
        convert("sample:gpt2", **latent | {"rope_dim": None}, slots=SLOTS, output=tmp_path / "gpt2")


def test_one_of_each_verifies(tmp_path: Path) -> None:
    for target in (GATED[0], next(target for target in SLOTTED if target not in LATENTS)):
        source = save_tiny(tmp_path / target.name / "in", source_type(target))
        folder = convert(source, **options(target), output=tmp_path / target.name / "out").output
        assert verify(folder, source).figures["around_attention"] == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"to": "latent-sequence"}, "needs --slots N"),
        ({"to": "latent-sequence", "slots": 2}, "at least 8"),
        ({"to": "mla", "rank": 16, "slots": 2}, "at least 8"),
        ({"to": "mqa", "slots": 8}, "--slots is for --to latent-sequence"),
        ({"to": "mixture-of-layers", "slots": 8}, "--slots is for --to latent-sequence"),
        ({"to": "mixture-of-layers", "groups": 2}, "drop --groups"),
        ({"to": "mixture-of-layers", "refit": True}, "drop --refit"),
        ({"to": "mixture-of-layers", "layout": "native"}, "drop --layout native"),
        ({"to": "mixture-of-layers", "method": "mean"}, "does not serve"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "in", "llama")
    with pytest.raises(UsageError, match=says):
        convert(source, output=tmp_path / "out", **given)


def test_families_without_a_class_are_refused(tmp_path: Path) -> None:
    for to in sorted({experiment(target).to for target in UNCHANGED}):
        with pytest.raises(UsageError, match="is experimental and has no class for gpt2; there is one for"):
            convert("sample:gpt2", to=to, slots=8 if "sequence" in to else None, output=tmp_path / "out")  # type: ignore[arg-type]


def test_rotations_that_change_and_windows_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    tiny_model("llama", rope_parameters=rope).save_pretrained(tmp_path / "dynamic")
    with pytest.raises(UsageError, match="rope type 'dynamic'"):
        convert(tmp_path / "dynamic", to="latent-sequence", slots=8, output=tmp_path / "out")
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    tiny_model("qwen2", **windows).save_pretrained(tmp_path / "windows")
    with pytest.raises(UsageError, match="sliding window"):
        convert(tmp_path / "windows", to="latent-sequence", slots=8, output=tmp_path / "out")


def test_they_are_listed_as_experimental(command: Command, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "in", "llama")
    rows = {row.name: row for row in inspect(source).rows if row.experimental}
    assert len(rows) == 2
    assert all("(experimental)" in name for name in rows)
    (held,) = (row for row in rows.values() if row.most is not None)
    assert held.at(10**6) == held.at(held.most or 0) < held.bytes_per_token * 10**6
    listed = json.loads(command("methods", "--json").out)
    (method,) = (row for row in listed if "mixture-of-layers" in row["targets"])
    assert method["summary"].startswith("experimental")


# --- a gate over the layers


@pytest.mark.parametrize("target", GATED, **by_name)
def test_a_gate_learns_from_the_start_and_decodes_with_a_cache(target: Target) -> None:
    original, model = made(target.name)
    tokens = ids(length=12)
    gate = model.model.norm.layer_gate
    torch.nn.init.zeros_(gate.weight)
    torch.nn.init.zeros_(gate.bias)
    model(tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 1e-6 for parameter in gate.parameters())
    torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens).logits
        assert (whole - original(tokens).logits).abs().max() > 1e-3
        compiled = torch.compile(model, fullgraph=True, backend="eager")(tokens).logits
    assert torch.equal(compiled, whole)
    torch.testing.assert_close(stepwise(model, tokens, [5, 1, 1, 5])[0], whole, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


def test_what_the_gate_mixes_sums_to_one() -> None:
    _, model = made(GATED[0].name)
    norm = model.model.norm
    torch.nn.init.normal_(norm.layer_gate.weight, generator=torch.Generator().manual_seed(0))
    state = torch.randn(1, 3, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0))
    norm.layer_states.read = [state.clone() for _ in range(SIZES["num_hidden_layers"])]
    torch.testing.assert_close(norm.mixed(state), state)
    with pytest.raises(RuntimeError, match="states and 1 came"):
        norm.mixed(state)


def test_heal_trains_the_gate_alone(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "in", "llama", initializer_range=0.2)
    np.save(tmp_path / "text.npy", (np.arange(40)[:, None] + np.arange(16)).astype(np.int32) % 7)
    train: dict[str, Any] = {"data": tmp_path / "text.npy", "tokens": 16 * 24, "batch_size": 4, "seq_len": 16}
    train |= {"selection_tokens": 64, "cpu": True, "train": "gate", "lr": 0.02}
    folder = convert(source, to="mixture-of-layers", output=tmp_path / "out").output
    with pytest.raises(UsageError, match="give --stages uptrain"):
        heal(folder, **train)
    healed = heal(folder, stages=("uptrain",), output=tmp_path / "healed", **train)
    before, after = tensors_of(folder), tensors_of(healed.output)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert all("layer_gate" in name for name in changed)
    assert changed
    assert config_of(healed.output)["convert_attn"]["heal"][-1]["train"] == "gate"
    plain = convert(source, to="mqa", calibration=None, measure=False, output=tmp_path / "plain").output
    with pytest.raises(UsageError, match="has no gate over its layers"):
        heal(plain, stages=("uptrain",), output=tmp_path / "other", **train)


# --- a cache of fixed length


def rules(model: Any, rule: tuple[float, ...]) -> list[list[float]] | None:
    """The same for every layer; None for ()."""
    return [[*rule] for _ in range(model.config.num_hidden_layers)] if rule else None


@pytest.mark.parametrize(("attention", "rule"), [("sdpa", ()), ("eager", CHOSEN)], ids=["sdpa", "eager, chosen"])
@pytest.mark.parametrize("target", SLOTTED, **by_name)
def test_slots_are_exact_while_a_text_fits_and_constant_beyond(
    target: Target, attention: str, rule: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, model = made(target.name)
    monkeypatch.setattr(model.config, "cache_merging", rules(model, rule))
    for one in (original, model):
        one.set_attn_implementation(attention)
    fits, tokens = 4 + 2 * SLOTS, ids()
    for pieces in ([fits], [7, 1, 1, fits - 9]):
        found, held = stepwise(model, tokens[:, :fits], pieces)
        assert isinstance(held, LatentSequenceCache)
        assert torch.equal(found, stepwise(original, tokens[:, :fits], pieces)[0])
    held_at = [stepwise(model, tokens, pieces)[1].nbytes for pieces in ([fits], [fits, 1], [fits, 3, 9], [40])]
    assert len(set(held_at)) == 1


@by_rule
@pytest.mark.parametrize("target", SLOTTED, **by_name)
def test_beyond_what_fits_a_padded_batch_is_each_text_alone(
    target: Target, rule: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = made(target.name)
    monkeypatch.setattr(model.config, "cache_merging", rules(model, rule))
    alone, held = stepwise(model, ids(), [10, *[1] * 10, 17, 3])
    padded = torch.cat([torch.zeros(2, 6, dtype=torch.long), ids()], 1)
    found, also = stepwise(model, padded, [16, *[1] * 10, 17, 3], padding=6)
    torch.testing.assert_close(found[:, 6:], alone, atol=2e-4, rtol=1e-4)
    for cache_held in (held, also):
        facts = cache_held.layers[0].facts
        torch.testing.assert_close(facts[..., MASS].sum(-1), torch.full((2, facts.shape[1]), 40.0))


@pytest.mark.parametrize("target", LATENTS, **by_name)
def test_both_ways_to_attend_to_latents_merge_the_same(target: Target) -> None:
    _, model = made(target.name)
    found = []
    for mode in ("absorb", "expand"):
        model.config.latent_attention_mode = mode
        found.append(stepwise(model, ids(), [30, 1, 9])[0])
    model.config.latent_attention_mode = "auto"
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_generate_makes_the_cache_takes_one_and_searches_with_beams() -> None:
    _, model = made(SLOTTED[0].name)
    settings: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    tokens = ids(length=9)
    given = with_cache(model, LatentSequenceCache(model.config))
    assert torch.equal(model.generate(tokens, **settings), model.generate(tokens, **settings, **given))
    assert model.generate(tokens, **settings, num_beams=2).shape == (2, 39)


@by_rule
def test_a_slot_of_equal_tokens_is_exact(rule: tuple[float, ...]) -> None:
    """m equal keys and values as one of mass m give what they give apart."""
    torch.manual_seed(0)
    key, value = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    order = torch.tensor([0, 1, 2, 1, 1, 2, 0, 1])
    facts = torch.zeros(1, 2, 8, LAST)
    facts[..., MASS], facts[..., RECEIVED] = 1, torch.rand(1, 2, 8)
    still = torch.zeros(4)  # nothing turns
    keys, values, known = merge(
        key[:, :, order], value[:, :, order], facts, slots=3, inv_freq=still, rule=MergeRule(*rule)
    )
    assert sorted(known[0, 0, :, MASS].tolist()) == [2, 2, 4]
    query = torch.randn(1, 2, 1, 8)
    apart = (query @ key[:, :, order].mT).softmax(-1) @ value[:, :, order]
    merged = (query @ keys.mT + known[..., MASS].log()[:, :, None]).softmax(-1) @ values
    torch.testing.assert_close(merged, apart)


def test_keys_are_merged_before_their_rotation_and_turned_to_the_mean_position() -> None:
    torch.manual_seed(0)
    plain, inv_freq = torch.randn(8), torch.tensor([1.0, 0.3, 0.1, 0.02])
    other = torch.randn(8) * 9
    positions = torch.tensor([3.0, 8.0, 5.0])
    keys = turned(torch.stack([plain, other, plain])[None, None], positions[None, None], inv_freq)
    facts = torch.zeros(1, 1, 3, LAST)
    facts[..., 0], facts[..., MASS], facts[..., RECEIVED] = positions, 1, torch.tensor([1.0, 1.0, 3.0])
    made_keys, _, known = merge(keys, keys, facts, slots=2, inv_freq=inv_freq)
    (place,) = (known[0, 0, :, MASS] == 2).nonzero()[0].tolist()
    assert math.isclose(float(known[0, 0, place, 0]), (3 + 3 * 5) / 4, rel_tol=1e-4)
    expected = turned(plain, known[0, 0, place, 0], inv_freq)
    torch.testing.assert_close(made_keys[0, 0, place], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(made_keys[0, 0, 1 - place], keys[0, 0, 1])  # what was not merged keeps its bits
    made_keys, made_values, _ = merge(keys, keys, facts, slots=2, inv_freq=inv_freq, rule=MergeRule(1.0, 1.0))
    mean = (keys[0, 0, 0] + 3 * keys[0, 0, 2]) / 4  # by received attention, of keys as they are turned
    torch.testing.assert_close(made_keys[0, 0, place], mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made_values[0, 0, place], mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", [SLOTTED[-1], LATENTS[0]], **by_name)
def test_the_rule_of_each_layer_is_that_which_loses_least_on_text(target: Target, tmp_path: Path) -> None:
    source, texts = save_tiny(tmp_path / "in", source_type(target)), ids(2, 64)
    np.save(tmp_path / "text.npy", texts.numpy())
    given: dict[str, Any] = {"to": experiment(target).to, "slots": SLOTS, "measure": False}
    given |= {"rank": 24, "rope_dim": 8} if target in LATENTS else {}
    folder = convert(source, **given, calibration=str(tmp_path / "text.npy"), output=tmp_path / "out").output
    model, found = load(folder), config_of(folder)["cache_merging"]
    held = LatentSequenceCache(model.config)
    assert [layer.sizes.rule for layer in held.layers if isinstance(layer, SlotLayer)] == [MergeRule(*r) for r in found]
    best = rule_errors(model, texts[:1], silent).argmin(0)
    assert [MergeRule(*rule) for rule in found] == [RULES[number] for number in best]


def test_on_a_text_too_short_to_choose_on_all_layers_merge_by_one_rule(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "in", "llama")
    np.save(tmp_path / "short.npy", ids(2, 40).numpy())
    short = convert(
        source, to="latent-sequence", slots=SLOTS, calibration=str(tmp_path / "short.npy"), output=tmp_path / "out"
    )
    assert any("short.npy has no windows of 60 tokens" in warning for warning in short.warnings)
    config = config_of(short.output)
    assert config.get("cache_merging") is None
    assert config["convert_attn"]["calibration"] is None


@pytest.mark.parametrize("target", [SLOTTED[-1], LATENTS[0]], **by_name)
def test_errors_of_rules_are_those_of_a_cache_with_slots(target: Target) -> None:
    _, model = made(target.name)
    texts = ids(2, 64)
    found = rule_errors(model, texts, silent)
    outputs: list[Tensor] = []
    hook = model.model.layers[0].self_attn.register_forward_hook(
        lambda module, given, output: outputs.append(output[0])
    )
    try:
        for rule in RULES:
            held = LatentSequenceCache(model.config)
            for layer in held.layers:
                layer.sizes = replace(layer.sizes, rule=rule)  # type: ignore[union-attr]
            for part in (texts[:, :-ASKED], texts[:, -ASKED:]):
                with torch.no_grad():
                    model(part, **with_cache(model, held), use_cache=True)
        with torch.no_grad():
            model(texts, use_cache=False)
    finally:
        hook.remove()
    whole = outputs[-1][:, -ASKED:]
    errors = torch.stack([(output - whole).square().sum() for output in outputs[1:-1:2]]) / whole.square().sum()
    torch.testing.assert_close(found[:, 0], errors, atol=1e-6, rtol=1e-3)
    assert errors.max() > 1.1 * errors.min()


def test_of_a_latent_with_its_rotary_key_the_last_dimensions_turn_back_and_forth() -> None:
    torch.manual_seed(0)
    entries, inv_freq, positions = torch.randn(1, 1, 3, 9), torch.tensor([1.0, 0.2]), torch.tensor([2.0, 5.0, 9.0])
    there = turned(entries, positions, inv_freq)
    assert torch.equal(there[..., :5], entries[..., :5])
    assert (there[..., 5:] - entries[..., 5:]).abs().amax(-1).min() > 1e-2
    torch.testing.assert_close(turned(there, positions, inv_freq, back=True), entries)


def test_what_is_merged_is_not_taken_back() -> None:
    _, model = made(SLOTTED[0].name)
    _, held = stepwise(model, ids(), [40])
    assert isinstance(held.layers[0], SlotLayer)
    with pytest.raises(RuntimeError, match="cannot be taken back"):
        held.layers[0].crop(-1)
