"""Multi-head latent attention end to end: what is exact, for every architecture x method, found by discovery."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command
from tiny import HEADS, KINDS, OWN, SIZES, get_attention, load, logits_of, set_attention, tiny_geometry, tiny_model

from convert_attn import ConvertAttnError, convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.block_facts import Rotary
from convert_attn.convert.archs.cache_form import LatentCache, form_of
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.conversion import api
from convert_attn.convert.fitting.layers import Layers
from convert_attn.convert.methods import DEFAULT, methods
from convert_attn.convert.planning.request import Request
from convert_attn.convert.planning.sizes import choose_form
from convert_attn.convert.targets import fitting
from convert_attn.eval.measures.decoding import cache_of, with_cache

HIDDEN, HEAD_DIM = SIZES["hidden_size"], SIZES["hidden_size"] // HEADS
_SIZES = Geometry(hidden_size=HIDDEN, num_layers=2, num_heads=HEADS, num_kv_heads=HEADS, head_dim=HEAD_DIM, context=64)
LATENT = [name for name in KINDS if fitting(architectures()[name], _SIZES, LatentCache.of(16, 8, 2))]
ROTARY = [name for name in LATENT if architectures()[name].position == "rope"]
GROUPED = [name for name in ROTARY if architectures()[name].config_kv_heads]
COMPRESSING = [name for name, method in methods().items() if method.compress]
# methods differ by whether keys turn and are normed; --slow runs all of them on every family
_ASKED = {
    (arch.turns, bool(arch.k_norm), arch.norm is None): name for name in LATENT for arch in [architectures()[name]]
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `source` and `way`: the default method on every family, the others on one of each kind."""
    if "way" not in metafunc.fixturenames:
        return
    every = bool(metafunc.config.getoption("--slow"))
    pairs = [(name, way) for name in LATENT for way in COMPRESSING]
    chosen = [(name, way) for name, way in pairs if every or way == DEFAULT or name in _ASKED.values()]
    metafunc.parametrize(("source", "way"), chosen)


def _convert(model: Any, folder: Path, **options: Any) -> Any:
    """Saved, converted and loaded again, in fp32."""
    model.save_pretrained(folder / "in")
    convert(folder / "in", to="mla", output=folder / "out", **options)
    return load(folder / "out")


def test_full_rank_gives_the_original_logits(source: str, way: str, tmp_path: Path) -> None:
    model = tiny_model(source)
    rotary = {"rope_dim": tiny_geometry(model)[1].turning_keys} if source in ROTARY else {}
    converted = _convert(model, tmp_path, rank=HIDDEN, method=way, **rotary)
    torch.testing.assert_close(logits_of(converted), logits_of(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", COMPRESSING)
def test_prescribed_frequencies_are_the_ones_that_the_weights_are_for(method: str, tmp_path: Path) -> None:
    """One K/V head and a rotary key of its size: DeepSeek-V3 turns planes as the source does, and nothing is lost."""
    model = tiny_model("llama", kv_heads=1)
    converted = _convert(model, tmp_path, rank=HIDDEN, rope_dim=HEAD_DIM, layout="native", method=method)
    torch.testing.assert_close(logits_of(converted), logits_of(model), atol=1e-3, rtol=1e-3)


def test_a_method_with_frequencies_of_its_own_is_refused_where_they_are_prescribed(tmp_path: Path) -> None:
    method = methods()["svd"]
    assert method.compress is not None
    compress = method.compress

    def free(weights: Any, sizes: Any, context: Any) -> Any:
        return compress(weights, replace(sizes, frequencies=None), context)

    tiny_model("llama").save_pretrained(tmp_path / "in")
    plan = api.plan(tmp_path / "in", to="mla", rank=24, rope_dim=8, layout="native", method="svd")
    layers = Layers(replace(plan, method=replace(method, compress=free)))
    with pytest.raises(ConvertAttnError, match="prescribes"):
        layers.convert(layers.read(0), layers.context(0, None), plan.form.of_layer(0))


@pytest.mark.parametrize("model_type", [name for name in LATENT if name not in ROTARY])
def test_without_sizes_a_model_without_rope_gets_the_lossless_half(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    converted = _convert(model, tmp_path)
    assert converted.config.kv_lora_rank == HIDDEN
    torch.testing.assert_close(logits_of(converted), logits_of(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", [name for name in LATENT if name not in ROTARY])
def test_rank_of_all_keys_and_values_is_enough_when_there_are_few(model_type: str, tmp_path: Path) -> None:
    """[Wk; Wv] of rank 12: a latent of 12 loses nothing, whatever the method's weights."""
    model = tiny_model(model_type)
    basis = torch.linalg.qr(torch.randn(HIDDEN, 12, dtype=torch.float64))[0]
    for layer in range(2):
        weights = get_attention(model, layer)
        set_attention(model, layer, replace(weights, k=weights.k @ basis @ basis.T, v=weights.v @ basis @ basis.T))
    converted = _convert(model, tmp_path, rank=12)
    torch.testing.assert_close(logits_of(converted), logits_of(model), atol=1e-4, rtol=1e-4)


def test_a_window_that_no_layer_has_does_not_limit_the_result(tmp_path: Path) -> None:
    model = tiny_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2)
    converted = _convert(model, tmp_path, rank=HIDDEN, rope_dim=HEADS * HEAD_DIM)
    torch.testing.assert_close(logits_of(converted), logits_of(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("model_type", GROUPED)
def test_grouped_sources_convert_too(model_type: str, kv_heads: int, tmp_path: Path) -> None:
    model = tiny_model(model_type, kv_heads=kv_heads)
    converted = _convert(model, tmp_path, rank=HIDDEN, rope_dim=tiny_geometry(model)[1].turning_keys)
    torch.testing.assert_close(logits_of(converted), logits_of(model), atol=1e-4, rtol=1e-4)


def test_measured_cache_is_the_predicted_and_decode_equals_prefill(source: str, way: str, tmp_path: Path) -> None:
    rotary = {"rope_dim": 6} if source in ROTARY else {}
    converted = _convert(tiny_model(source), tmp_path, rank=20, method=way, **rotary)
    tokens = torch.randint(1, SIZES["vocab_size"], (2, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = converted(input_ids=tokens).logits
        out = converted(input_ids=tokens[:, :4], use_cache=True)
        pieces = [out.logits]
        for t in range(4, 10):
            out = converted(input_ids=tokens[:, t : t + 1], **with_cache(converted, cache_of(out)), use_cache=True)
            pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)
    layers = cache_of(out).layers
    measured = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    numbers = 20 + rotary.get("rope_dim", 0) + form_of(converted.config).key_sizes
    assert measured == 2 * 10 * 2 * numbers * 4  # batch, tokens, layers, numbers, fp32


@pytest.mark.parametrize("model_type", [name for name in LATENT if name != "gpt2_gqa"])
def test_subspace_beats_plain_factorisation(model_type: str, tmp_path: Path) -> None:
    """On heads with structure: attention to a low-rank signal among inputs of very different size."""
    model = tiny_model(model_type)
    arch = architectures()[model_type]
    if arch.norm is not None and arch.norm.gain_offset == 0:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(f"{arch.norm.name}.weight"):
                    parameter.copy_(torch.logspace(-1.5, 0.5, HIDDEN))
    rotary = {"rope_dim": 8} if model_type in ROTARY else {}
    errors = {}
    for method in ("subspace", "svd"):
        converted = _convert(model, tmp_path / method, rank=24, method=method, **rotary)
        errors[method] = float((logits_of(converted) - logits_of(model)).square().mean())
    assert errors["subspace"] < errors["svd"]


@pytest.mark.parametrize("model_type", [name for name in LATENT if architectures()[name].norm is not None])
def test_latent_norm_leaves_latents_of_typical_size_alone(model_type: str, tmp_path: Path) -> None:
    """Behind a norm with gains of one every input has the same size, and at full rank the latent is the input."""
    # each has one of them
    model = tiny_model(model_type, layer_norm_epsilon=1e-9, rms_norm_eps=1e-9, layer_norm_eps=1e-9, norm_epsilon=1e-9)
    norm = architectures()[model_type].norm
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{norm.name}." in name:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0 - norm.gain_offset)
    rotary = {"rope_dim": tiny_geometry(model)[1].turning_keys} if model_type in ROTARY else {}
    converted = _convert(model, tmp_path, rank=HIDDEN, latent_norm=True, **rotary)
    assert converted.config.latent_norm
    torch.testing.assert_close(logits_of(converted), logits_of(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_latent_norm_normalises_what_is_cached(model_type: str, tmp_path: Path, command: Command) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    arguments = [tmp_path / "in", "--to", "mla", "--rank", "20", "--json"]
    plans = []
    for name, flags in (("plain", []), ("normed", ["--latent-norm"])):
        outcome = command(*arguments, *flags, "--output", tmp_path / name)
        assert outcome.code == 0, outcome.err
        plans.append(json.loads(outcome.out))
    assert [plan["latent_norm"] for plan in plans] == [False, True]
    assert plans[0]["cache_bytes_per_token_after"] == plans[1]["cache_bytes_per_token_after"]
    with torch.no_grad():
        layers = cache_of(load(tmp_path / "normed")(torch.arange(10)[None], use_cache=True)).layers
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert measured == 10 * plans[1]["cache_bytes_per_token_after"]
    for layer in layers:  # every token's latent has the one size that the weight gives it
        sizes = layer.keys[..., :20].square().mean(-1)
        torch.testing.assert_close(sizes, sizes.mean().expand_as(sizes), rtol=1e-3, atol=0)


def _has_native(model_type: str) -> bool:
    return any(t.layout == "native" for t in fitting(architectures()[model_type], _SIZES, LatentCache.of(16, 8, 2)))


NATIVE = [name for name in ROTARY if _has_native(name)]


@pytest.fixture
def prescribed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our class with the frequencies that the native class prescribes: then both hold the same latent."""
    from convert_attn.convert import targets

    frequencies = next(t for t in targets.targets() if t.name == "deepseek_v3").frequencies
    ours = [replace(t, frequencies=frequencies) if t.name == "llama_mla" else t for t in targets.targets()]
    monkeypatch.setattr(targets, "targets", lambda: ours)


@pytest.mark.parametrize("model_type", NATIVE)
def test_native_layout_equals_our_class_on_the_same_latent(model_type: str, tmp_path: Path, prescribed: None) -> None:
    model = tiny_model(model_type)
    native = _convert(model, tmp_path / "native", rank=24, rope_dim=8, layout="native")
    assert native.config.model_type == "deepseek_v3"
    assert type(native).__module__.startswith("transformers.")
    has_query_bias = get_attention(model, 0).q_bias is not None
    assert native.config.q_lora_rank == (HIDDEN + 1 if has_query_bias else None)
    custom = _convert(model, tmp_path / "custom", rank=24, rope_dim=8)
    assert custom.config.model_type == "llama_mla"
    torch.testing.assert_close(logits_of(native), logits_of(custom), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [23, 24, 40])
@pytest.mark.parametrize("model_type", NATIVE)
def test_native_layout_in_half_precision_is_as_exact_as_our_class(
    model_type: str, rank: int, dtype: torch.dtype, tmp_path: Path, prescribed: None
) -> None:
    """The constants that neutralise the norms must not cost more than the dtype's own rounding.

    A dropped term, a constant that overflows or a norm weight that rounds would all show as a larger error against
    our class in fp32.
    """
    model = tiny_model(model_type)
    native = _convert(model, tmp_path / "native", rank=rank, rope_dim=8, layout="native")
    custom = _convert(model, tmp_path / "custom", rank=rank, rope_dim=8)
    exact = logits_of(custom)
    errors = [float((logits_of(m.to(dtype)).float() - exact).square().mean().sqrt()) for m in (native, custom)]
    assert errors[0] < 2 * errors[1]


@pytest.mark.parametrize("model_type", NATIVE)
def test_native_cache_has_the_predicted_bytes(model_type: str, tmp_path: Path, command: Command) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "in")
    arguments = ["--to", "mla", "--rank", "20", "--rope-dim", "6", "--layout", "native", "--json"]
    outcome = command(tmp_path / "in", *arguments, "--output", tmp_path / "out")
    with torch.no_grad():
        tokens = torch.ones(1, 10, dtype=torch.long)
        layers = cache_of(load(tmp_path / "out")(tokens, use_cache=True)).layers
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert json.loads(outcome.out)["cache_bytes_per_token_after"] * 10 == measured


def test_cache_ratio_fills_the_share_in_multiples_of_eight(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="mla", cache_ratio=0.5, output=tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    rank, rope_dim = config["kv_lora_rank"], config["qk_rope_head_dim"]
    assert rank + rope_dim == HEADS * HEAD_DIM  # half of 2 K d
    assert rank % 8 == rope_dim % 8 == 0
    assert config["convert_attn"]["rank"] == rank


@pytest.mark.parametrize(("ratio", "split"), [(0.5, (80, 48)), (0.25, (32, 32)), (0.125, (16, 16)), (0.75, (120, 72))])
def test_half_of_a_small_cache_is_rotary_and_three_eighths_of_a_large_one(ratio: float, split: tuple[int, int]) -> None:
    sizes = Geometry(
        hidden_size=128,
        num_layers=2,
        num_heads=8,
        num_kv_heads=8,
        head_dim=16,
        context=64,
        position=Rotary(inv_freq=(1.0, 0.5, 0.25, 0.125, 0.06, 0.03, 0.015, 0.01)),
    )
    form = choose_form(Request(to="mla", cache_ratio=ratio), architectures()["llama"], sizes)
    assert form == LatentCache.of(*split, 2)


BAD = {
    "rank 0": ("llama", ["--rank", "0"], "--rank is 0"),
    "rank above full": ("gpt2", ["--rank", "65"], "more than the hidden size 64"),
    "no sizes": ("llama", [], "--to mla needs --rank"),
    "odd rope dim": ("llama", ["--rank", "8", "--rope-dim", "5"], "--rope-dim is 5"),
    "rope dim too large": ("llama", ["--rank", "8", "--rope-dim", "66"], "--rope-dim is 66"),
    "rope dim without rope": ("gpt2", ["--rank", "8", "--rope-dim", "4"], "no rotary position"),
    "groups": ("gpt2", ["--groups", "4"], "--groups is for --to gqa"),
    "ratio and rank": ("gpt2", ["--rank", "8", "--cache-ratio", "0.5"], "--cache-ratio chooses the sizes"),
    "ratio too small": ("llama", ["--cache-ratio", "0.01"], "--cache-ratio 0.01 leaves"),
    "method": ("gpt2", ["--rank", "8", "--method", "mean"], "does not serve --to mla"),
    "latent norm, native": (
        "llama",
        ["--rank", "8", "--rope-dim", "8", "--latent-norm", "--layout", "native"],
        "--latent-norm needs our class",
    ),
    "native gpt2": ("gpt2", ["--rank", "8", "--layout", "native"], "no native class holds gpt2"),
}


def test_biases_of_the_mlp_have_no_native_class(tmp_path: Path, command: Command) -> None:
    tiny_model("llama", mlp_bias=True).save_pretrained(tmp_path / "in")
    sizes = ("--to", "mla", "--rank", "8", "--rope-dim", "8", "--output", str(tmp_path / "out"))
    outcome = command(str(tmp_path / "in"), *sizes, "--layout", "native")
    assert outcome.code == 2
    assert "no native class holds llama" in outcome.err
    assert command(str(tmp_path / "in"), *sizes).code == 0


@pytest.mark.parametrize("case", BAD)
def test_sizes_that_do_not_fit_are_refused_in_one_sentence(case: str, tmp_path: Path, command: Command) -> None:
    model_type, arguments, sentence = BAD[case]
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    outcome = command(str(tmp_path / "in"), "--to", "mla", *arguments, "--output", str(tmp_path / "out"))
    assert outcome.code == 2
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bitnet", "has a norm between its heads and the output projection"),
        ("phimoe", "no class with a latent has the blocks of phimoe"),
        ("deepseek_v3", "caches a latent already"),
    ],
)
def test_models_that_cannot_be_converted_say_why(
    model_type: str, reason: str, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    outcome = command(str(tmp_path), "--to", "mla", "--rank", "8")
    assert outcome.code == 2
    assert reason in outcome.err


def test_a_rotation_that_changes_with_the_length_is_refused(tmp_path: Path, command: Command) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    tiny_model("llama", rope_parameters=rope).save_pretrained(tmp_path / "in")
    outcome = command(str(tmp_path / "in"), "--to", "mla", "--rank", "8")
    assert outcome.code == 2
    assert "rope type 'yarn'" in outcome.err


def test_latent_norm_for_shared_heads_is_refused(tmp_path: Path, command: Command) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "in")
    outcome = command(str(tmp_path / "in"), "--to", "mqa", "--latent-norm")
    assert outcome.code == 2
    assert "--latent-norm is for --to mla" in outcome.err


def test_rank_for_shared_heads_is_refused(tmp_path: Path, command: Command) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "in")
    outcome = command(str(tmp_path / "in"), "--to", "gqa", "--groups", "2", "--rank", "8")
    assert outcome.code == 2
    assert "--rank and --rope-dim are for --to mla" in outcome.err


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("model_type", GROUPED)
def test_room_for_every_key_and_value_loses_what_the_dtype_does_and_no_more(
    model_type: str, dtype: str, tmp_path: Path
) -> None:
    """A rotary key as large as what turns of all keys, and a latent as large as all else, in the dtype stored."""
    kv_heads, own = HEADS // 2, OWN.get(model_type, {})
    # all experts: a choice that is nearly even would turn on a rounding
    counts = [own[name] for name in ("num_experts", "num_local_experts", "n_routed_experts") if name in own]
    experts = {"num_experts_per_tok": counts[0]} if counts else {}
    original = tiny_model(model_type, kv_heads=kv_heads, **experts)
    numbers, turning = kv_heads * HEAD_DIM, tiny_geometry(original)[1].turning_keys
    converted = _convert(original, tmp_path, rank=2 * numbers - turning, rope_dim=turning, dtype=dtype)
    convert(tmp_path / "in", to="gqa", groups=kv_heads, dtype=dtype, output=tmp_path / "rounded")
    expected = logits_of(original)
    lost = (logits_of(load(tmp_path / "rounded")) - expected).std() / expected.std()
    assert (logits_of(converted) - expected).std() / expected.std() <= 2 * lost + 1e-5
