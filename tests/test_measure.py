"""What a conversion says of its own quality is what its class gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of
from tiny import load, tiny_model

from convert_attn.convert.cli.report import summary_lines
from convert_attn.convert.conversion.api import convert
from convert_attn.convert.fitting.measure import Measured
from convert_attn.convert.samples import sample_path
from convert_attn.convert.text import windows as calibration_text


@torch.no_grad()
def perplexity(model: Any, windows: torch.Tensor) -> float:
    logits = model(input_ids=windows).logits[:, :-1].log_softmax(-1)
    return math.exp(-float(logits.gather(-1, windows[:, 1:, None]).mean()))


@pytest.mark.parametrize("to", ["gqa", "mqa", "mla"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_both_perplexities_are_those_of_the_classes(name: str, to: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"gqa": {"groups": 2}, "mqa": {}, "mla": {"cache_ratio": 0.125}}[to]
    result = convert(f"sample:{name}", to=to, dtype="bfloat16", output=tmp_path / "out", **sizes)
    found = result.made.measured
    assert isinstance(found, Measured)
    folder = sample_path(name)
    windows, called = calibration_text.shipped_windows("sample", folder, name, 512, 10**6)
    assert (found.windows, found.length, found.text) == (*windows.shape, called)
    assert found.original.mean == pytest.approx(perplexity(load(folder), windows), rel=1e-4)
    assert found.perplexity.mean == pytest.approx(perplexity(load(tmp_path / "out"), windows), rel=2e-3)
    assert found.perplexity.mean > found.original.mean
    assert found.kl.mean > 0
    assert 0 < found.top1.mean < 1
    assert config_of(tmp_path / "out")["convert_attn"]["quality"]["perplexity"]["mean"] == found.perplexity.mean
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| perplexity | {found.original.mean:.2f} | {found.perplexity.mean:.2f} ±" in card


def test_the_users_own_text_is_measured_on_where_there_is_more_of_it(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"def f{n}(x):\n    return x + {n}\n\n" for n in range(2000)))
    result = convert(
        "sample:llama",
        to="mqa",
        calibration=str(tmp_path / "text.txt"),
        calibration_tokens=2048,
        output=tmp_path / "out",
    )
    found = result.made.measured
    assert isinstance(found, Measured)
    assert found.text == "text of text.txt that nothing was fitted on"


def test_a_ruin_is_called_one(tmp_path: Path, command: Command) -> None:
    outcome = command("sample:llama", "--to", "mqa", "--method", "mean", "--output", str(tmp_path / "out"))
    assert outcome.code == 0
    assert "unusable as it is" in outcome.out
    assert "heal it" in outcome.out
    assert "--to mla --cache-ratio 0.12" in outcome.out


def test_what_was_not_measured_is_said(tmp_path: Path, command: Command) -> None:
    outcome = command("sample:llama", "--to", "mqa", "--no-measure", "--output", str(tmp_path / "out"))
    assert "Quality was not measured (--no-measure)." in outcome.out
    assert "No quality was measured for this card." in (tmp_path / "out" / "README.md").read_text()
    assert config_of(tmp_path / "out")["convert_attn"]["quality"] is None
    tiny_model("llama").save_pretrained(tmp_path / "in")
    bare = convert(tmp_path / "in", to="mqa", output=tmp_path / "bare")
    assert bare.made.measured == f"'{tmp_path / 'in'}' has no tokenizer"
    same = convert("sample:gpt2", to="gqa", groups=8, output=tmp_path / "same")
    assert "Quality was not measured (nothing was changed)." in "\n".join(summary_lines(same))
