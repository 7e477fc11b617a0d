"""Calibration: what is measured on text, and what is made of it, against the models themselves."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import tensors_of
from tiny import HEADS, KINDS, SIZES, assert_same_logits, load, logits_of, tiny_geometry, tiny_model
from torch import Tensor, nn

from convert_attn import convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.calibration.calibrate import calibrate
from convert_attn.convert.calibration.statistics import LayerStatistics
from convert_attn.convert.calibration.statistics import _by_offset as by_offset
from convert_attn.convert.conversion import api
from convert_attn.convert.fitting.layers import Layers
from convert_attn.convert.fitting.refit import single
from convert_attn.convert.fitting.session import fitting
from convert_attn.convert.maths.latent_basis import Latent, Reading, exact_latent, fit_latent
from convert_attn.convert.maths.latent_basis import _one_metric as one_metric
from convert_attn.convert.maths.moments import Moments
from convert_attn.convert.maths.rotary import Offsets, characteristic, measured_offsets
from convert_attn.convert.maths.rotary import _within_bin as within_bin
from convert_attn.convert.progress import silent
from convert_attn.convert.streaming.stream import Stream
from convert_attn.convert.targets import fitting as targets_for
from convert_attn.convert.targets.base import Converted
from convert_attn.convert.weights.functional import Attention

HIDDEN, LAYERS = SIZES["hidden_size"], SIZES["num_hidden_layers"]
HEAD_DIM = HIDDEN // HEADS
_SIZES = Geometry(
    hidden_size=HIDDEN, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, head_dim=HEAD_DIM, context=64
)
LATENT = [
    name
    for name, arch in architectures().items()
    if (held := targets_for(arch, _SIZES, LatentCache.of(16, 8, LAYERS)))
    and (name in KINDS or any(target.layout == "native" for target in held))
]
ROTARY = [name for name in LATENT if architectures()[name].position == "rope"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Statistics are kept here."""
    monkeypatch.setenv("CONVERT_ATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def windows_of(count: int = 6, length: int = 32, seed: int = 0) -> Tensor:
    """[count, length] random tokens."""
    return torch.randint(0, SIZES["vocab_size"], (count, length), generator=torch.Generator().manual_seed(seed))


def save_windows(file: Path, windows: Tensor) -> str:
    """As a calibration text."""
    np.save(file, windows.numpy())
    return str(file)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks."""
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS)


def states_of(model: Any, tokens: Tensor) -> list[Tensor]:
    """What each block gives, [B, T, D]."""
    caught: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack, torch.no_grad():
        for block in blocks_of(model):
            stack.callback(block.register_forward_hook(keep).remove)
        model(input_ids=tokens)
    return caught


def open_stream(folder: Path, **options: Any) -> tuple[Stream, Layers]:
    """A checkpoint to be run block by block, and its weights."""
    plan = api.plan(folder, to="gqa", groups=HEADS // 2, **options)
    return Stream(plan.source, plan.arch, plan.geometry), Layers(plan)


@torch.no_grad()
def streamed(stream: Stream, weights: Callable[[int], Converted], tokens: Tensor) -> list[Tensor]:
    """What each block gives with these weights in its attention, [B, T, D]."""
    (states,) = stream.embed([tokens])
    found = []
    for layer in range(LAYERS):
        used = single(weights(layer))
        with stream.block(layer) as block:
            states = block.run(states, lambda x: Attention(used, x, block.rule).output())  # noqa: B023
        found.append(states)
    return found


def assert_same_states(found: list[Tensor], expected: list[Tensor]) -> None:
    """Within 1e-5 of their size."""
    assert len(found) == len(expected) == LAYERS
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


def latent_options(model_type: str, rank: int = 24, rope_dim: int = 8) -> dict[str, Any]:
    """Sizes of a latent for this architecture."""
    return {"to": "mla", "rank": rank} | ({"rope_dim": rope_dim} if model_type in ROTARY else {})


# --- the functions that calibration and refit run are the model


def test_block_by_block_equals_the_model(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "in")
    stream, layers = open_stream(tmp_path / "in")
    assert_same_states(streamed(stream, layers.read, windows_of()), states_of(model, windows_of()))


SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "few K/V heads": ("llama", {"kv_heads": 4}),
    "sliding window": ("mistral", {"sliding_window": 8}),
    "windows in some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "windows by layer types": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "a window that no layer has": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": LAYERS},
    ),
    "scale by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "no scale": ("gpt2", {"scale_attn_weights": False}),
    "scale in float32": ("gpt2", {"reorder_and_upcast_attn": True}),
    "tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "attention biases": ("llama", {"attention_bias": True}),
    "wide heads": ("llama", {"head_dim": 16}),
    "partial rotary": ("phi3", {"partial_rotary_factor": 0.5}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_block_by_block_follows_the_config(case: str, tmp_path: Path) -> None:
    model_type, options = SPECIAL[case]
    model = tiny_model(model_type, **options)
    model.save_pretrained(tmp_path / "in")
    plan = api.plan(tmp_path / "in", to="mqa")
    stream = Stream(plan.source, plan.arch, plan.geometry)
    assert_same_states(streamed(stream, Layers(plan).read, windows_of()), states_of(model, windows_of()))


@contextmanager
def fitted(folder: Path, **options: Any) -> Iterator[tuple[Stream, Callable[[int], Converted]]]:
    """The stream of the original, and what its layers become."""
    plan = api.plan(folder, **options)
    with fitting(plan, silent) as found:
        yield Stream(plan.source, plan.arch, plan.geometry), lambda layer: found.convert(layer).attention


@pytest.mark.parametrize("to", ["gqa", "mla"])
def test_block_by_block_equals_the_converted_model(model_type: str, to: str, tmp_path: Path) -> None:
    """So what is fitted by running it is what the result will compute."""
    if to == "mla" and model_type not in LATENT:
        pytest.skip("no class holds its latent")
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    text = save_windows(tmp_path / "text.npy", windows_of())
    sizes = latent_options(model_type) if to == "mla" else {"to": "gqa", "groups": 4}
    options = sizes | {"calibration": text}
    convert(tmp_path / "in", output=tmp_path / "out", **options)
    tokens = windows_of(seed=1)
    with fitted(tmp_path / "in", **options) as (stream, weights):
        found = streamed(stream, weights, tokens)
    assert_same_states(found, states_of(load(tmp_path / "out"), tokens))


def test_latent_norm_runs_block_by_block_too(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "in")
    text = save_windows(tmp_path / "text.npy", windows_of())
    options = latent_options("llama") | {"calibration": text, "latent_norm": True}
    convert(tmp_path / "in", output=tmp_path / "out", **options)
    with fitted(tmp_path / "in", **options) as (stream, weights):
        found = streamed(stream, weights, windows_of(seed=1))
    assert_same_states(found, states_of(load(tmp_path / "out"), windows_of(seed=1)))


# --- statistics


def measured(folder: Path, windows: Tensor) -> list[LayerStatistics]:
    """The statistics of every layer."""
    stream, layers = open_stream(folder)
    known = calibrate(
        layers.plan.source, stream, read=layers.read, windows=windows, layers=LAYERS, heads=HEADS, progress=silent
    )
    return [known.layer(layer) for layer in range(LAYERS)]


@torch.no_grad()
def direct(model: Any, tokens: Tensor, stride: int = 1) -> list[LayerStatistics]:
    """The same from the model's own attention probabilities, by the definitions.

    Args:
        stride: attention of every so many queries, the last of the window among them.
    """
    local = architectures()[model.config.model_type].output.rpartition(".")[0]
    weights = model.state_dict()  # some classes keep the attention that they were made with
    model = type(model)._from_config(deepcopy(model.config), attn_implementation="eager").eval()
    model.load_state_dict(weights)
    inputs: list[Tensor] = []
    with ExitStack() as stack:
        for block in blocks_of(model):
            handle = block.get_submodule(local).register_forward_pre_hook(
                lambda m, args, kwargs: inputs.append((args[0] if args else kwargs["hidden_states"]).double()),
                with_kwargs=True,
            )
            stack.callback(handle.remove)
        attentions = model(input_ids=tokens, output_attentions=True).attentions
    found = []
    for x, p in zip(inputs, attentions, strict=True):
        queries = torch.arange(stride - 1, p.shape[2], stride)
        p = p.double()[:, :, queries]  # [B, H, r, T]
        attended = torch.einsum("bhts,bsd->bhtd", p, x).flatten(0, 2)
        rows = p.shape[:3].numel()
        histogram = torch.zeros(p.shape[1], p.shape[3], dtype=torch.float64)
        for row, t in enumerate(queries.tolist()):
            for s in range(t + 1):
                histogram[:, t - s] += p[:, :, row, s].sum(0)
        found.append(
            LayerStatistics(
                tokens=tokens.numel(),
                mean=x.flatten(0, 1).mean(0),
                second=torch.einsum("bsd,bse->de", x, x) / tokens.numel(),
                keys_mean=torch.einsum("bhts,bsd->d", p, x) / rows,
                keys=torch.einsum("bhts,bsd,bse->de", p, x, x) / rows,
                attended=attended.T @ attended / len(attended),
                histogram=histogram / histogram.sum(1, keepdim=True),
            )
        )
    return found


def assert_same_statistics(found: list[LayerStatistics], expected: list[LayerStatistics], rtol: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        for name, value in vars(other).items():
            if isinstance(value, Tensor):
                assert getattr(one, name).dtype == torch.float64
                torch.testing.assert_close(getattr(one, name), value, rtol=rtol, atol=rtol * float(value.abs().max()))


def test_statistics_are_those_of_the_models_attention(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "in")
    assert_same_statistics(measured(tmp_path / "in", windows_of()), direct(model, windows_of()))


@pytest.mark.parametrize("case", ["sliding window", "windows by layer types", "few K/V heads"])
def test_statistics_follow_the_config(case: str, tmp_path: Path) -> None:
    model_type, options = SPECIAL[case]
    model = tiny_model(model_type, **options)
    model.save_pretrained(tmp_path / "in")
    plan = api.plan(tmp_path / "in", to="mqa")
    stream = Stream(plan.source, plan.arch, plan.geometry)
    known = calibrate(
        plan.source, stream, read=Layers(plan).read, windows=windows_of(), layers=LAYERS, heads=HEADS, progress=silent
    )
    assert_same_statistics([known.layer(n) for n in range(LAYERS)], direct(model, windows_of()))


def test_statistics_do_not_depend_on_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "in")
    found = []
    for tokens, scores in ((32, 1), (1 << 20, 1 << 26)):
        monkeypatch.setattr(sys.modules["convert_attn.convert.calibration.calibrate"], "_BATCH_TOKENS", tokens)
        monkeypatch.setattr(sys.modules["convert_attn.convert.weights.functional"], "_SCORES", scores)
        monkeypatch.setenv("CONVERT_ATTN_CACHE", str(tmp_path / str(tokens)))
        found.append(measured(tmp_path / "in", windows_of()))
    assert_same_statistics(found[0], found[1], rtol=1e-6)


def test_evenly_spaced_queries_stand_for_all_of_a_long_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third of 32, in all that is of attention; moments of inputs are of all tokens."""
    monkeypatch.setattr(sys.modules["convert_attn.convert.calibration.statistics"], "_ROWS", 11)
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "in")
    assert_same_statistics(measured(tmp_path / "in", windows_of()), direct(model, windows_of(), stride=3))


def test_mass_by_offset_equals_the_loop() -> None:
    probabilities, rows = torch.rand(3, 7, 7).tril(), torch.tensor([1, 2, 6])
    expected = torch.zeros(3, 7, dtype=torch.float64)
    for t in rows.tolist():
        for s in range(t + 1):
            expected[:, t - s] += probabilities[:, t, s]
    torch.testing.assert_close(by_offset(probabilities[:, rows], rows), expected)


def test_a_short_text_leans_on_the_prior_and_gets_full_rank() -> None:
    x = torch.randn(5, HIDDEN, dtype=torch.float64)
    second = x.T @ x / 5
    seen = LayerStatistics(
        tokens=5,
        mean=x.mean(0),
        second=second,
        keys_mean=x.mean(0),
        keys=second,
        attended=second,
        histogram=torch.ones(HEADS, 5),
    )
    prior = Moments(torch.zeros(HIDDEN, dtype=torch.float64), torch.linspace(0.5, 2, HIDDEN, dtype=torch.float64))
    for moments in seen.damped(prior):
        torch.testing.assert_close(moments.second.trace(), second.trace())
        assert float(torch.linalg.eigvalsh(moments.second)[0]) > 0
    long = LayerStatistics(
        tokens=10**9,
        mean=x.mean(0),
        second=second,
        keys_mean=x.mean(0),
        keys=second,
        attended=second,
        histogram=torch.ones(HEADS, 5),
    )
    torch.testing.assert_close(long.damped(prior)[0].second, second, rtol=1e-6, atol=1e-6)


# --- offsets


@pytest.mark.parametrize(("length", "context"), [(1, 1), (20, 64), (64, 64), (300, 2048), (300, 100)])
def test_measured_offsets_sum_to_one_and_keep_the_mass_in_its_bin(length: int, context: int) -> None:
    histogram = torch.rand(4, length, dtype=torch.float64)
    histogram[0] = 0  # a head that was never seen: the prior
    histogram[1] = torch.nn.functional.one_hot(torch.tensor(length - 1), length)
    found = measured_offsets(histogram, context, 0.05)
    torch.testing.assert_close(found.mass.sum(1), torch.ones(4, dtype=torch.float64))
    assert int(found.width.sum()) == max(length, context)
    left, right = found.distance - (found.width - 1) / 2, found.distance + (found.width - 1) / 2
    torch.testing.assert_close(left[1:], right[:-1] + 1)
    at = int(((left <= length - 1) & (length - 1 <= right)).nonzero())
    assert float(found.mass[1, at]) >= 0.95
    prior = measured_offsets(torch.ones(1, 1), context, 1.0) if context >= length else None
    if prior is not None:
        torch.testing.assert_close(found.mass[0], prior.mass[0])


def test_bins_of_one_offset_give_the_direct_sum() -> None:
    mass = torch.rand(3, 40, dtype=torch.float64)
    mass = mass / mass.sum(1, keepdim=True)
    distance = torch.arange(40, dtype=torch.float64)
    omega = torch.tensor([[0.0, 0.3], [1.0, 2 * torch.pi]], dtype=torch.float64)
    found = characteristic(Offsets(distance, mass, torch.ones(40, dtype=torch.float64)), omega)
    expected = (mass[:, None, None] * torch.exp(1j * omega[..., None] * distance)).sum(-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [1, 2, 5, 64])
@pytest.mark.parametrize("omega", [0.0, 1e-12, 0.01, 1.0, 3.14159, -0.7])
def test_within_a_bin_is_the_mean_over_its_offsets(width: int, omega: float) -> None:
    offsets = torch.arange(width, dtype=torch.float64)
    expected = torch.exp(1j * omega * (offsets - offsets.mean())).mean()
    found = within_bin(torch.tensor([float(width)], dtype=torch.float64), torch.tensor([[omega]], dtype=torch.float64))
    torch.testing.assert_close(found.squeeze(), expected.real)
    assert abs(float(expected.imag)) < 1e-9


# --- refit


def test_as_many_groups_as_heads_stays_bit_identical(model_type: str, tmp_path: Path) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    text = save_windows(tmp_path / "text.npy", windows_of())
    convert(tmp_path / "in", to="gqa", groups=HEADS, calibration=text, refit=True, output=tmp_path / "out")
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    found, wanted = (logits_of(load(tmp_path / folder)) for folder in ("out", "in"))
    assert_same_logits(found, wanted)  # our classes may add in another order
    if load(tmp_path / "out").config.model_type == model_type:
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(found, wanted)


@dataclass(frozen=True)
class _Errors:
    """Squared distances to the original behind the attention of each layer."""

    plain: float
    refitted: float


@torch.no_grad()
def _first_layer_errors(folder: Path, fit: Tensor, options: dict[str, Any]) -> _Errors:
    errors = []
    for refit in (False, True):
        with fitted(folder, refit=refit, **options) as (stream, weights):
            (states,) = stream.embed([fit])
            with stream.block(0) as block:
                x = block.normalised(states)
                original = Attention(single(Layers(api.plan(folder, **options)).read(0)), x, block.rule).output()
                output = Attention(single(weights(0)), x, block.rule).output()
        errors.append(float((output - original).square().sum()))
    return _Errors(*errors)


@pytest.mark.parametrize("to", ["gqa", "mla"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])  # with an output bias and without
def test_refit_makes_the_first_layer_no_worse_on_its_text(model_type: str, to: str, tmp_path: Path) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    windows = windows_of(8)  # the eighth is for choosing
    text = save_windows(tmp_path / "text.npy", windows)
    sizes = latent_options(model_type) if to == "mla" else {"to": "mqa"}
    errors = _first_layer_errors(tmp_path / "in", windows[:7], sizes | {"calibration": text})
    # of random windows nothing can be learnt about others: then the fit stays as it was
    assert errors.refitted <= errors.plain * 1.05


def test_refit_makes_later_layers_better_too(tmp_path: Path) -> None:
    """The states behind the last block, on text for fitting: what the first has lost is made good."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in")
    windows = windows_of(16)
    text = save_windows(tmp_path / "text.npy", windows)
    errors = []
    for refit in (False, True):
        convert(tmp_path / "in", to="gqa", groups=2, calibration=text, refit=refit, output=tmp_path / f"out{refit}")
        states = states_of(load(tmp_path / f"out{refit}"), windows)[-1]
        errors.append(float((states - states_of(model, windows)[-1]).square().sum()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("model_type", LATENT)
def test_full_rank_stays_exact_with_refit(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "in")
    text = save_windows(tmp_path / "text.npy", windows_of())
    options = latent_options(model_type, rank=HIDDEN, rope_dim=tiny_geometry(model)[1].turning_keys)
    convert(tmp_path / "in", calibration=text, refit=True, output=tmp_path / "out", **options)
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(model), atol=1e-4, rtol=1e-4)


# --- the latent's basis in two metrics


def _psd(seed: int, rank: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(24, rank, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, rank)
    return factor @ factor.T


def _loss(latent: Latent, keys: Reading, values: Reading) -> float:
    """tr P (1 - up down) C (1 - up down)^T for keys and values."""
    total = 0.0
    for reading, up in ((keys, latent.up_k), (values, latent.up_v)):
        missed = torch.eye(24, dtype=torch.float64) - up @ latent.down
        total += float((reading.weight @ missed @ reading.moments.matrix() @ missed.T).trace())
    return total


def _best_way_out(down: Tensor, second: Tensor) -> Tensor:
    return second @ down.T @ torch.linalg.inv(down @ second @ down.T)


def _readings(weights: tuple[int, int], moments: tuple[Moments, Moments]) -> tuple[Reading, Reading]:
    return Reading(_psd(weights[0]), moments[0]), Reading(_psd(weights[1]), moments[1])


def _moments(seed: int) -> Moments:
    return Moments(torch.zeros(24, dtype=torch.float64), _psd(seed))


def test_equal_moments_give_the_optimum_of_one_metric() -> None:
    """The eigenvalues beyond the rank are what is lost: Eckart-Young."""
    moments = _moments(3)
    keys, values = _readings((1, 2), (moments, moments))
    latent = fit_latent(keys, values, 6)
    assert torch.equal(latent.up_k, latent.up_v)
    root = torch.linalg.cholesky(moments.matrix())
    lost = torch.linalg.eigvalsh(root.T @ (keys.weight + values.weight) @ root)[:-6].sum()
    assert _loss(latent, keys, values) == pytest.approx(float(lost), rel=1e-6)


@pytest.mark.parametrize("rank", [2, 6, 15])
@pytest.mark.parametrize("seed", range(3))
def test_two_metrics_end_below_the_start_from_their_mean(rank: int, seed: int) -> None:
    keys, values = _readings((10 * seed + 1, 10 * seed + 2), (_moments(10 * seed + 3), _moments(10 * seed + 4)))
    second_k, second_v = keys.moments.matrix(), values.moments.matrix()
    middle = (second_k + second_v) / 2
    down = one_metric(keys.weight + values.weight, torch.linalg.cholesky(middle), middle.diagonal(), rank).down
    start = Latent(down, _best_way_out(down, second_k), _best_way_out(down, second_v))
    losses = [_loss(fit_latent(keys, values, rank, sweeps), keys, values) for sweeps in (0, 1, 5, 20)]
    assert losses[0] == pytest.approx(_loss(start, keys, values), rel=1e-6)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]


def test_two_equal_metrics_agree_with_one() -> None:
    keys, values = _readings((1, 2), (_moments(3), _moments(3)))
    both = _readings((1, 2), (keys.moments, keys.moments))
    assert _loss(fit_latent(keys, values, 6), keys, values) == pytest.approx(
        _loss(fit_latent(*both, 6), *both), rel=1e-6
    )


@pytest.mark.parametrize("equal", [True, False])
def test_full_rank_loses_nothing(equal: bool) -> None:
    first = _moments(3)
    keys, values = _readings((1, 2), (first, first if equal else _moments(4)))
    assert _loss(fit_latent(keys, values, 24), keys, values) < 1e-6 * _loss(fit_latent(keys, values, 1), keys, values)
    exact = exact_latent(None, 24, 24)
    assert exact is not None
    assert _loss(exact, keys, values) == 0


# --- determinism


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.parametrize("options", [{"to": "gqa", "groups": 2}, {"to": "mla", "cache_ratio": 0.25}])
def test_the_same_command_gives_the_same_bytes(options: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    """Measured anew, or found on disk: then nothing is measured."""
    tiny_model("llama").save_pretrained(tmp_path / "in")
    text = save_windows(tmp_path / "text.npy", windows_of(16))
    written, stages = [], []
    for run in ("first", "anew", "reused"):
        if run == "anew":
            shutil.rmtree(cache)
        seen: set[str] = set()
        convert(
            tmp_path / "in",
            calibration=text,
            output=tmp_path / run,
            progress=lambda stage, done, total: seen.add(stage),  # noqa: B023
            **options,
        )
        written.append(_bytes(tmp_path / run))
        stages.append(seen)
    assert written[0]
    assert written[0] == written[1] == written[2]
    # with sizes that are given, measuring is part of the one run over the text
    assert ["calibration" in seen for seen in stages] == [options["to"] == "mla"] * 2 + [False]
    # sizes are chosen on some of the windows, whose statistics are kept apart from those of all
    assert len(list((cache / "calibration").iterdir())) == (2 if options["to"] == "mla" else 1)
    assert not list(cache.rglob("partial-*"))


def test_other_text_or_weights_are_measured_anew(tmp_path: Path, cache: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "in")
    measured(tmp_path / "in", windows_of())
    measured(tmp_path / "in", windows_of())
    assert len(list((cache / "calibration").iterdir())) == 1
    measured(tmp_path / "in", windows_of(seed=1))
    assert len(list((cache / "calibration").iterdir())) == 2
    tiny_model("gpt2", seed=1).save_pretrained(tmp_path / "in")
    measured(tmp_path / "in", windows_of())
    assert len(list((cache / "calibration").iterdir())) == 3
