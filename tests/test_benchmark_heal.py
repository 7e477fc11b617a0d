"""What the benchmark of healing says of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from convert_attn.convert.option_types import Count, short_count
from convert_attn.eval.benchmarks.heal import OURS, UPTRAIN, HealRow, main, needed


def _rows(way: str, figures: dict[int, float]) -> list[HealRow]:
    return [
        HealRow(model="m", target="mqa", way=way, tokens=tokens, perplexity=value, kl=value / 10)
        for tokens, value in figures.items()
    ]


BASE = _rows(UPTRAIN, {0: 90.0, 100: 50.0, 400: 30.0, 1600: 20.0})


@pytest.mark.parametrize(
    ("tokens", "value", "expected"),
    [
        (100, 19.0, "more than 16.0x"),
        (100, 20.0, "4.0x to 16.0x"),
        (100, 30.5, "1.0x to 4.0x"),
        (100, 55.0, "at most 1.0x"),
        (100, 95.0, "none"),
        (0, 40.0, "100 tokens to 400 tokens"),
        (0, 10.0, "more than 1,600 tokens"),
    ],
)
@pytest.mark.parametrize("figure", ["perplexity", "kl"])
def test_tokens_needed_are_bounds_from_the_budgets_that_were_run(
    tokens: int, value: float, expected: str, figure: str
) -> None:
    row = _rows(OURS, {tokens: value})[0]
    assert needed(row, [*BASE, row], figure) == expected
    assert needed(row, [row], figure) == "not run"
    assert needed(BASE[0], BASE, figure) == ""


def test_earlier_rows_are_joined_into_one_table_and_picture(tmp_path: Path) -> None:
    healed = _rows(OURS, {0: 40.0, 100: 19.0})
    for name, rows in (("one", BASE[::-1]), ("two", [*healed, BASE[0]])):
        content = {"originals": {"m": 10.0}, "rows": [vars(row) for row in rows]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    words = [word for name in ("one", "two") for word in ("--with", str(tmp_path / f"{name}.json"))]
    words += ["--json", str(tmp_path / "all.json"), "--png", str(tmp_path / "all.png")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "| m | mqa | ours | 100 | 19.00 | +90.0% | 1.9000 | more than 16.0x | more than 16.0x |" in done.output
    kept = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert [HealRow(**row) for row in kept] == [*healed, *BASE]
    assert (tmp_path / "all.png").stat().st_size > 1000


@pytest.mark.parametrize("text", ["100", "250K", "1.5M", "2B"])
def test_counts_are_written_as_they_are_read(text: str) -> None:
    assert short_count(Count().convert(text, None, None)) == text
