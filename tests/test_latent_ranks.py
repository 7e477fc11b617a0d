"""MLA with a rank for each layer: chosen on calibration text, cached in the bytes that were promised, and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Command, config_of, edit_tensors, tensors_of
from tiny import HEADS, KINDS, SIZES, load, logits_of, tiny_model

from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.conversion import api
from convert_attn.convert.fitting.ranks import filled_in, greedy, splits
from convert_attn.convert.fitting.session import fitting
from convert_attn.convert.progress import silent
from convert_attn.convert.targets import fitting as targets_for
from convert_attn.eval.measures.decoding import cache_of, with_cache

HIDDEN, LAYERS, VOCABULARY = SIZES["hidden_size"], SIZES["num_hidden_layers"], SIZES["vocab_size"]
_SIZES = Geometry(
    hidden_size=HIDDEN, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, head_dim=HIDDEN // HEADS, context=64
)
LATENT = [
    name
    for name, arch in architectures().items()
    if (held := targets_for(arch, _SIZES, LatentCache.of(16, 8, LAYERS)))
    and (name in KINDS or any(target.layout == "native" for target in held))
]
NATIVE = [
    name
    for name in LATENT
    if any(
        target.layout == "native"
        for target in targets_for(architectures()[name], _SIZES, LatentCache.of(16, 8, LAYERS))
    )
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERT_ATTN_CACHE", str(tmp_path / "cache"))
    np.save(tmp_path / "text.npy", np.random.default_rng(0).integers(0, VOCABULARY, (9, 48)))


# --- where directions go


def test_directions_go_where_they_are_worth_most() -> None:
    """For curves that fall ever more slowly the sum is the least that any choice can reach."""
    generator = torch.Generator().manual_seed(0)
    falls = [torch.rand(7, generator=generator).sort(descending=True).values * scale for scale in (1.0, 3.0, 0.1)]
    curves = [[float(fall[n:].sum()) for n in range(8)] for fall in falls]
    for count in range(3, 25):
        ranks = greedy(curves, count)
        assert sum(ranks) == 8 * count
        taken = [rank // 8 for rank in ranks]
        assert min(taken) >= 1
        least = torch.cat(falls).sort(descending=True).values[count - 3 :].sum()
        found = sum(curve[n - 1] for curve, n in zip(curves, taken, strict=True))
        assert found == pytest.approx(float(least), abs=1e-5)


def test_a_layer_whose_error_falls_late_gets_what_that_takes() -> None:
    late, early = [1.0, 0.99, 0.98, 0.0], [0.3, 0.2, 0.1, 0.05]
    assert greedy([late, early], 5) == (32, 8)
    assert greedy([late, early], 3) == (8, 16)  # not enough for it


def test_ranks_end_at_the_hidden_size() -> None:
    assert greedy([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0]], 100) == (32, 16)
    assert sum(greedy([[0.0] * 4, [0.0] * 4], 4)) == 32


def test_every_layer_keeps_the_smallest_rank_that_was_measured() -> None:
    assert greedy([[1.0, 0.5, 0.2, 0.1], [0.0] * 4], 6, least=2) == (32, 16)


def test_errors_between_those_measured_fall_evenly_in_their_logarithm() -> None:
    found = filled_in([16, 32], [1e-2, 1e-4], 48)
    assert found == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    assert filled_in([16, 32], [1e-4, 2e-4], 32) == pytest.approx([1e-4] * 4)  # more is no worse
    assert filled_in([8], [0.5], 24) == [0.5, 0.5, 0.5]


def test_splits_keep_the_cache() -> None:
    form = LatentCache.of(40, 24, LAYERS)
    found = splits(form, HIDDEN, HIDDEN)
    assert found[0] == form
    assert len(found) == len(set(found)) > 1
    for other in found:
        assert other.rank + other.rope_dim == 64
        assert other.rank % 8 == other.rope_dim % 8 == 0


# --- end to end


def _uneven(model_type: str, folder: Path) -> Path:
    """A model whose second layer's keys and values are of rank 4 and 4: it needs less than the first."""
    model = tiny_model(model_type)
    model.save_pretrained(folder)
    arch = architectures()[model_type]
    names = arch.projections[:-1]

    def flatten(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".1." in name and name.endswith(tuple(f"{stem}.weight" for stem in names)):
                rows = tensor.T if arch.transposed else tensor
                left, values, right = torch.linalg.svd(rows.double(), full_matrices=False)
                values[4:] *= 1e-3
                small = ((left * values) @ right).to(tensor.dtype)
                tensor.copy_(small.T if arch.transposed else small)

    return edit_tensors(folder, flatten)


def _converted(command: Command, folder: Path, *options: str) -> dict[str, Any]:
    arguments = ("--to", "mla", "--cache-ratio", "0.25", "--calibration", str(folder / "text.npy"), "--json")
    outcome = command(str(folder / "in"), *arguments, *options, "--output", str(folder / "out"))
    assert outcome.code == 0, outcome.err
    return dict(json.loads(outcome.out))


def _cache_bytes(cache: Any) -> int:
    """Of every tensor that the cache holds; a single number is a counter."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if torch.is_tensor(value)]
    return sum(tensor.nbytes for tensor in tensors if tensor.ndim)


def _tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", LATENT)
def test_each_layer_caches_what_was_chosen_for_it(model_type: str, tmp_path: Path, command: Command) -> None:
    _uneven(model_type, tmp_path / "in")
    found = _converted(command, tmp_path)
    config = config_of(tmp_path / "out")
    ranks, rope_dim = config["kv_lora_ranks"], config["qk_rope_head_dim"]
    assert len(ranks) == LAYERS
    assert ranks[0] > ranks[1]
    assert config["kv_lora_rank"] == max(ranks)
    sizes_of_keys = found.get("key_sizes", 0)
    assert sum(ranks) + LAYERS * rope_dim == LAYERS * ((2 * HIDDEN // 4 - sizes_of_keys) // 8 * 8)
    assert found["ranks"] == config["convert_attn"]["ranks"] == ranks
    model = load(tmp_path / "out")
    _check_cached(model, found["cache_bytes_per_token_after"])
    _check_static(model)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config.kv_lora_ranks == ranks
    assert torch.equal(logits_of(again), logits_of(model))
    assert tensors_of(tmp_path / "again").keys() == tensors_of(tmp_path / "out").keys()


@torch.no_grad()
def _check_cached(model: Any, per_token: int) -> None:
    """The bytes are those that were promised, and going on from the cache gives the same."""
    tokens = _tokens(1, 11)
    whole = model(input_ids=tokens)
    assert _cache_bytes(cache_of(whole)) == 11 * per_token
    first = model(input_ids=tokens[:, :6])
    rest = model(input_ids=tokens[:, 6:], **with_cache(model, cache_of(first)))
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole.logits, atol=1e-5, rtol=1e-5)


def _check_static(model: Any) -> None:
    """A static cache finds its size in each layer."""
    tokens = _tokens(2, 5)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    dynamic, static = (
        model.generate(tokens, attention_mask=torch.ones_like(tokens), cache_implementation=kind, **settings)
        for kind in (None, "static")
    )
    assert dynamic.shape == (2, 13)
    assert torch.equal(dynamic, static)


def test_ranks_by_layer_beat_one_rank_where_layers_differ(tmp_path: Path, command: Command) -> None:
    _uneven("llama", tmp_path / "in")
    original = logits_of(load(tmp_path / "in"))
    found = _converted(command, tmp_path)
    chosen = float((logits_of(load(tmp_path / "out")) - original).square().mean())
    arguments = ["--rank", str(found["rank"]), "--rope-dim", str(found["rope_dim"])]
    text = ["--calibration", str(tmp_path / "text.npy")]
    outcome = command(str(tmp_path / "in"), "--to", "mla", *arguments, *text, "--output", str(tmp_path / "even"))
    assert outcome.code == 0, outcome.err
    assert config_of(tmp_path / "even")["kv_lora_ranks"] is None
    assert chosen < float((logits_of(load(tmp_path / "even")) - original).square().mean())


@pytest.mark.parametrize("model_type", NATIVE)
def test_a_native_class_keeps_one_rank(model_type: str, tmp_path: Path, command: Command) -> None:
    _uneven(model_type, tmp_path / "in")
    found = _converted(command, tmp_path, "--layout", "native")
    config = config_of(tmp_path / "out")
    assert "ranks" not in found
    assert "kv_lora_ranks" not in config
    model = load(tmp_path / "out")
    assert model.config.model_type == "deepseek_v3"
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        cache = cache_of(model(input_ids=tokens, use_cache=True))
    assert _cache_bytes(cache) == 10 * found["cache_bytes_per_token_after"]


@pytest.mark.parametrize("model_type", NATIVE[:1])  # what is tried has nothing to do with the architecture
def test_every_split_of_a_native_class_is_tried_at_its_own_frequencies(model_type: str, tmp_path: Path) -> None:
    """The class prescribes them by the size of the rotary key."""
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    text = str(tmp_path / "text.npy")
    options: dict[str, Any] = {"to": "mla", "cache_ratio": 0.5, "layout": "native", "calibration": text}
    plan = api.plan(tmp_path / "in", **options)
    stages = {}
    with fitting(plan, lambda stage, done, total: stages.update({stage: total})) as found:
        form = found.plan.form
        assert isinstance(form, LatentCache)
        weights: Any = found.convert(0).attention
        expected = plan.target.frequencies(found.plan.blueprint)
        assert expected is not None
        assert tuple(weights.inv_freq.tolist()) == pytest.approx(expected)
        assert len(expected) == form.rope_dim // 2
    assert stages["split"] == LAYERS
    assert "ranks" not in stages


def test_sizes_that_the_user_gives_stay(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "in")
    plan = api.plan(tmp_path / "in", to="mla", rank=24, rope_dim=8, calibration=str(tmp_path / "text.npy"))
    with fitting(plan, silent) as found:
        assert found.plan.form == LatentCache.of(24, 8, LAYERS)
