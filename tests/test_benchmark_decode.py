"""The decode benchmark with tiny sizes: what it compares and what it reports, not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from convert_attn.eval.benchmarks import common, decode, decode_contenders
from convert_attn.eval.measures.decoding import with_cache
from convert_attn.eval.measures.timing import SLOW_REPEATS, Timed, take_turns

CONTEXTS = [16, 32]
SIZES = decode_contenders.Sizes(heads=4, head_dim=8, rank=16, rope_dim=8, layers=1)
OPTIONS = "--contexts 16,32 --heads 4 --head-dim 8 --rank 16 --rope-dim 8 --layers 1 --repeats 2".split()
CPU = torch.device("cpu")
# numbers per token and layer; deepseek_v3 has one more latent channel
NUMBERS = {"mha": 2 * 4 * 8, "gqa": 2 * 1 * 8, "mla": 16 + 8, "deepseek_v3": 16 + 1 + 8}


def _models(layers: int = 1) -> dict[str, Any]:
    sizes = decode_contenders.Sizes(
        heads=SIZES.heads, head_dim=SIZES.head_dim, rank=SIZES.rank, rope_dim=SIZES.rope_dim, layers=layers
    )
    return decode_contenders.make_models(sizes, max(CONTEXTS), torch.float32, CPU)


def test_both_latent_classes_are_the_same_model() -> None:
    assert decode_contenders.check_same(_models()) <= decode_contenders.TOLERANCE


def test_different_latent_weights_are_refused() -> None:
    models = _models()
    with torch.no_grad():
        models["mla"].model.layers[0].self_attn.kv_b_proj.weight.mul_(1.05)
    with pytest.raises(click.ClickException, match="nothing was timed"):
        decode_contenders.check_same(models)


@pytest.mark.parametrize("kind", ["inplace", "dynamic"])
@pytest.mark.parametrize("name", decode_contenders.CONTENDERS)
@torch.inference_mode()
def test_every_step_sees_the_same_context(name: str, kind: str) -> None:
    model = _models(layers=2)[name]
    filled = decode_contenders.fill(model, 16, kind)
    token = torch.tensor([[3]])
    outputs = []
    for _ in range(3):
        outputs.append(model(token, **with_cache(model, filled.cache), use_cache=True).logits)
        assert filled.cache.get_seq_length() == 17
        filled.reset()
        assert filled.cache.get_seq_length() == 16
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_both_kinds_of_cache_give_the_same_step() -> None:
    for model in _models().values():
        logits = []
        for kind in ("inplace", "dynamic"):
            torch.manual_seed(0)
            filled = decode_contenders.fill(model, 16, kind)
            with torch.inference_mode():
                logits.append(model(torch.tensor([[3]]), **with_cache(model, filled.cache), use_cache=True).logits)
        torch.testing.assert_close(logits[0], logits[1])


def test_figures(tmp_path: Path) -> None:
    file = tmp_path / "decode.json"
    result = CliRunner().invoke(decode.main, [*OPTIONS, "--dtypes", "float32,bfloat16", "--json", str(file)])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    found = [(row["dtype"], row["context"], row["contender"]) for row in figures["rows"]]
    assert found == [
        (t, n, name) for t in ("float32", "bfloat16") for n in CONTEXTS for name in decode_contenders.CONTENDERS
    ]
    for row in figures["rows"]:
        itemsize = 4 if row["dtype"] == "float32" else 2
        assert row["model_cache_bytes"] == NUMBERS[row["contender"]] * row["context"] * itemsize
        assert all(row[part]["median_ms"] > 0 and row[part]["repeats"] == 2 for part in ("block", "model", "read"))
    assert figures["largest_logit_difference_mla_deepseek_v3"] <= decode_contenders.TOLERANCE
    assert "threads" in result.output
    assert "| bfloat16 | 32 | deepseek_v3 |" in result.output


def test_cache_bytes_count_all_layers() -> None:
    for name, model in _models(layers=2).items():
        filled = decode_contenders.fill(model, 16)
        assert filled.nbytes(0) == NUMBERS[name] * 16 * 4
        assert filled.nbytes() == 2 * filled.nbytes(0)


BAD = [
    ["--contexts", "16,x"],
    ["--contexts", "16,0"],
    ["--dtypes", "int3"],
    ["--heads", "6"],
    ["--device", "abacus"],
    ["--png", "no/such/a.png"],
]


@pytest.mark.parametrize("options", BAD)
def test_bad_options_are_named(options: list[str]) -> None:
    result = CliRunner().invoke(decode.main, [*OPTIONS, *options])
    assert result.exit_code == 2
    assert options[1].split(",")[-1] in result.output


def test_png_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "decode.png"
    result = CliRunner().invoke(decode.main, [*OPTIONS, "--dtypes", "float32", "--png", str(file)])
    assert result.exit_code == 0, result.output
    assert file.read_bytes().startswith(b"\x89PNG")


def test_png_without_matplotlib_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "find_spec", lambda name: None)
    result = CliRunner().invoke(decode.main, [*OPTIONS, "--png", str(tmp_path / "decode.png")])
    assert result.exit_code == 2
    assert "matplotlib" in result.output


def test_slow_calls_are_repeated_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert_attn.eval.measures.timing.SLOW_SECONDS", 0.0)
    times = take_turns({"one": Timed(lambda: None), "two": Timed(lambda: None)}, 10, CPU)
    assert {spread.repeats for spread in times.values()} == {SLOW_REPEATS}
