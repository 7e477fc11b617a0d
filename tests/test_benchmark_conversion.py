"""The conversion benchmark: what it counts, and what it says of its targets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from convert_attn.eval.benchmarks.conversion.__main__ import main
from convert_attn.eval.benchmarks.conversion.layers import main as layers
from convert_attn.eval.benchmarks.conversion.processes import Run, first_line, row, run
from convert_attn.eval.benchmarks.conversion.report import COPY, LATENT, MEAN, MERGEKIT, START, markdown, targets

_MEMORY = "import time; x = bytearray(200_000_000); x[::4096] = b'x' * len(x[::4096]); time.sleep(0.3)"


def test_a_run_is_timed_with_all_its_processes() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_MEMORY!r}], check=True)"
    measured = run([sys.executable, "-c", code])
    assert measured.wall > 0.3
    assert measured.processor > 0.02
    assert 200e6 < measured.peak < 400e6


def test_a_command_that_fails_is_said() -> None:
    with pytest.raises(click.ClickException, match=r"failed with status 1: ValueError: no such thing"):
        run([sys.executable, "-c", "raise ValueError('no such thing')"])


def test_targets_are_met_or_missed() -> None:
    rows = [
        row(name, [Run(seconds, seconds, 10**9)] * 3)
        for name, seconds in {COPY: 2.0, START: 3.0, MEAN: 6.0, MERGEKIT: 15.0, LATENT: 60.0}.items()
    ]
    assert [sentence.partition(": ")[2] for sentence in targets(rows)] == [
        "met (6.0 s, 1.00 of 6.0 s)",
        "missed (6.0 s, 1.20 of 5.0 s)",
        "missed (60.0 s, 2.00 of 30.0 s)",
    ]
    assert "| mla | 60.00 (60.00 to 60.00) | 60.00 | 1.00 | 30.00 |" in markdown(rows)


def test_the_benchmark_copies_and_keeps_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    json_file, png = tmp_path / "figures.json", tmp_path / "figures.png"
    options = ["--gigabytes", "0.3", "--repeats", "2", "--only", COPY, "--folder", str(tmp_path)]
    done = CliRunner().invoke(main, [*options, "--json", str(json_file), "--png", str(png)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figures = json.loads(json_file.read_text())
    assert figures["source_bytes"] > 2e8
    (only,) = figures["rows"]
    assert only["name"] == COPY
    assert only["runs"] == 2
    assert png.stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "figures.png"]


def test_rows_of_several_runs_make_a_page(tmp_path: Path) -> None:
    files = []
    for number, rows in enumerate(({COPY: 2.0, MEAN: 9.0}, {MEAN: 6.0, START: 4.0})):
        measured = [row(name, [Run(seconds, seconds, 10**9)]) for name, seconds in rows.items()]
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps({"environment": {"cores": 2}, "source_bytes": 10**9, "rows": measured}))
        files += ["--with", str(file)]
    page = tmp_path / "page.md"
    done = CliRunner().invoke(
        main, [*files, "--repeats", "0", "--note", "Alone on it.", "--page", str(page)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "| mean | 6.00 (6.00 to 6.00) | 6.00 | 1.00 | 3.00 |" in text
    assert "- mean within start-up and 1.5 times cp -r: met (6.0 s, 0.86 of 7.0 s)" in text
    assert "cores 2." in text
    assert "Alone on it." in text
    assert "- mla in 30 s: not measured" in text
    assert "- mla, --jobs 2 in 30 s: not measured" in text
    assert "mergekit: not measured" in text


def test_nothing_to_measure_is_refused() -> None:
    done = CliRunner().invoke(main, ["--repeats", "0"])
    assert "--repeats 0 measures nothing" in done.output


def test_a_layer_is_timed(tmp_path: Path) -> None:
    file = tmp_path / "layer.json"
    for form in (["--groups", "2"], ["--rank", "16", "--rope-dim", "8"]):
        options = ["--hidden", "64", "--heads", "4", *form, "--json", str(file)]
        done = CliRunner().invoke(layers, options, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        (only,) = json.loads(file.read_text())["rows"]
        assert only["name"] == f"layer 64, 4 heads over 4: {'GQA-2' if '--groups' in form else 'MLA 16 + 8'}"
        assert only["seconds"] > 0
        assert only["peak_bytes"] > 1e8
    assert CliRunner().invoke(layers, []).exit_code == 2


def test_the_first_line_is_timed_apart_from_the_rest() -> None:
    code = "import time; print('here', flush=True); time.sleep(0.5); print('there')"
    assert first_line([sys.executable, "-c", code]).wall < 0.4
    with pytest.raises(click.ClickException, match="printed nothing"):
        first_line([sys.executable, "-c", ""])
