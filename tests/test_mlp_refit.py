"""`--refit mlp`: the one option that changes tensors outside attention, in every family and class that can hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Command, config_of, tensors_of
from tiny import HEADS, KINDS, SIZES, load, logits_of, tiny_model

from convert_attn import convert, verify
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.heal.state.pair import open_pair
from convert_attn.convert.targets import fitting as targets_for

_SIZES = Geometry(
    hidden_size=SIZES["hidden_size"],
    num_layers=2,
    num_heads=HEADS,
    num_kv_heads=HEADS,
    head_dim=SIZES["hidden_size"] // HEADS,
    context=64,
)
SOLVABLE = [name for name in KINDS if architectures()[name].mlp_output is not None]
CASES = [(name, {"to": to} | ({"groups": 2} if to == "gqa" else {})) for name in SOLVABLE for to in ("gqa", "mqa")]
CASES += [
    (name, {"to": "mla", "cache_ratio": 0.25})
    for name in SOLVABLE
    if targets_for(architectures()[name], _SIZES, LatentCache.of(16, 8, 2))
]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Few different windows again and again: what is fitted on some does for the others."""
    monkeypatch.setenv("CONVERT_ATTN_CACHE", str(tmp_path / "cache"))
    windows = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (4, 48))
    np.save(tmp_path / "text.npy", np.tile(windows, (8, 1)))
    return str(tmp_path / "text.npy")


def _distance(folder: Path, original: Any, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        wanted = original(input_ids=tokens).logits
        return float((load(folder)(input_ids=tokens).logits - wanted).square().mean())


@pytest.mark.parametrize(
    ("model_type", "options"), CASES, ids=lambda value: value if isinstance(value, str) else value["to"]
)
def test_only_what_ends_the_mlps_changes_besides(
    model_type: str, options: dict[str, Any], tmp_path: Path, text: str
) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "in")
    for refit in (True, "mlp"):
        convert(tmp_path / "in", **options, calibration=text, refit=refit, output=tmp_path / str(refit))
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "mlp")
    arch = architectures()[model_type]
    ends = {name for name in before if arch.mlp_output in name}
    assert len(ends) >= SIZES["num_hidden_layers"]
    same_layout = [name for name in before if name in after and before[name].shape == after[name].shape]
    assert all(name in after and before[name].numel() == after[name].numel() for name in ends)
    changed = {name for name in same_layout if not torch.equal(before[name], after[name])}
    assert all(name in ends or any(part in name for part in arch.tensors) for name in changed)
    assert any(name in changed or before[name].shape != after[name].shape for name in ends)
    # nearer to the original on text that it has seen, as the class computes it
    tokens = torch.from_numpy(np.load(text))[:4]
    assert _distance(tmp_path / "mlp", model, tokens) < _distance(tmp_path / "True", model, tokens)
    assert "that ends each MLP" in (tmp_path / "mlp" / "README.md").read_text()
    assert config_of(tmp_path / "mlp")["convert_attn"]["calibration"]["refit"] == "mlp"
    # the checks know of it, and of nothing else
    verify(tmp_path / "mlp", against=tmp_path / "in")


@pytest.mark.parametrize("model_type", [name for name in KINDS if name not in SOLVABLE])
def test_an_mlp_that_ends_in_no_projection_is_refused(model_type: str, tmp_path: Path, text: str) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    with pytest.raises(UsageError, match=f"no single one does in {model_type}"):
        convert(tmp_path / "in", to="mqa", calibration=text, refit="mlp", output=tmp_path / "out")


def test_what_does_not_say_that_it_changed_the_mlps_does_not_verify(tmp_path: Path, text: str) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="mqa", calibration=text, refit="mlp", output=tmp_path / "out")
    config = config_of(tmp_path / "out")
    config["convert_attn"]["calibration"]["refit"] = True
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConvertAttnError, match="differs from its source outside attention"):
        verify(tmp_path / "out", against=tmp_path / "in")


def test_another_dtype_is_verified_too(tmp_path: Path, text: str) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="mqa", calibration=text, refit="mlp", dtype="float32", output=tmp_path / "out")
    verify(tmp_path / "out", against=tmp_path / "in")


def test_the_teacher_is_known_by_what_was_not_changed(tmp_path: Path, text: str) -> None:
    for seed in (0, 1):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / f"in{seed}")
    convert(tmp_path / "in0", to="mqa", calibration=text, refit="mlp", output=tmp_path / "out")
    assert open_pair(str(tmp_path / "out"), resolve(str(tmp_path / "in0"))).teacher is not None
    with pytest.raises(UsageError, match="is not the source of"):
        open_pair(str(tmp_path / "out"), resolve(str(tmp_path / "in1")))


def test_as_many_groups_as_heads_changes_nothing(tmp_path: Path, text: str) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=HEADS, calibration=text, refit="mlp", output=tmp_path / "out")
    assert torch.equal(logits_of(load(tmp_path / "out")), logits_of(model))


def test_the_command_line_says_which(tmp_path: Path, text: str, command: Command) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "in")
    words = [str(tmp_path / "in"), "--to", "mqa", "--calibration", text, "--output", str(tmp_path / "out")]
    for asked, found in ((["--refit", "mlp"], "mlp"), (["--refit"], True), (["--no-refit"], False), ([], True)):
        assert command(*words, *asked, "--overwrite").code == 0
        block = config_of(tmp_path / "out")["convert_attn"]
        assert block["calibration"]["refit"] == found
        assert (" ".join(asked) in block["command"]) if asked else ("refit" not in block["command"])
    outcome = command(*words, "--refit", "mlp", "--no-refit", "--overwrite")
    assert outcome.code == 2
    assert "say the opposite" in outcome.err
