"""The benchmark of decoding over fewer heads with tiny sizes: what it compares and what it reports."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from convert_attn.eval.benchmarks.heads import __main__ as heads
from convert_attn.eval.benchmarks.heads.report import page

OPTIONS = (
    "--heads 4 --head-dim 8 --groups 2 --rank 16 --rope-dim 8 --contexts 16,32 --model-contexts 16 --prompts 4 "
    "--layers 1 --repeats 2 --dtypes float32"
).split()
# numbers per token: K and V of each head, or a latent and a rotary key
NUMBERS = {"MHA": 64, "GQA-2": 32, "MQA": 16, "MLA(16+8)": 24}


def test_figures_and_page(tmp_path: Path) -> None:
    files = [tmp_path / "heads.json", tmp_path / "heads.md"]
    result = CliRunner().invoke(heads.main, [*OPTIONS, "--json", str(files[0]), "--page", str(files[1])])
    assert result.exit_code == 0, result.output
    figures = json.loads(files[0].read_text())
    forms = [(form, name) for form in list(NUMBERS)[:3] for name in ("stock", "packed")] + [("MLA(16+8)", "packed")]
    found = [(row["context"], row["form"], row["function"]) for row in figures["attention"]]
    assert found == [(context, *form) for context in (16, 32) for form in forms]
    for row in figures["attention"]:
        assert row["cache_bytes"] == NUMBERS[row["form"]] * row["context"] * 4
        assert ("met" in row) == (row["form"] != "MHA")
    assert [row["model"] for row in figures["steps"]] == [" ".join(form) for form in forms]
    assert len(figures["prefills"]) == len(forms)
    assert [row["form"] for row in figures["arithmetic"]] == 2 * ["MQA", "MLA(16+8)", "square"]
    assert figures["arithmetic"][1]["operations"] == 4 * 4 * 16 * 24  # heads, tokens, numbers of an entry
    for row in figures["attention"]:
        if "met" in row:
            row["step"]["median_ms"], row["allowed_ms"], row["met"] = 3.0, 2.0, False
    assert "| missed: 1.50 of 2.00 ms |" in page(figures)
    assert page(json.loads(files[0].read_text())) == files[1].read_text()


def test_groups_that_do_not_divide_heads_are_named() -> None:
    result = CliRunner().invoke(heads.main, [*OPTIONS, "--groups", "3"])
    assert result.exit_code == 2
    assert "--heads must be a multiple of --groups, got 4 and 3" in result.output
