"""Progress where there is no terminal: plain lines on stderr, by a clock that the tests move."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Command, save_tiny
from rich.console import Console

from convert_attn.convert.cli import bars
from convert_attn.convert.cli.bars import LINE_EVERY, Lines, noted_bars, progress_bars


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pieces(io.StringIO):
    """A stream that keeps what each call of `write` brought, and knows what was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.flushed = 0

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)

    def flush(self) -> None:
        self.flushed = len(self.pieces)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream() -> Pieces:
    return Pieces()


@pytest.fixture
def lines(stream: Pieces, clock: Clock) -> Lines:
    return Lines(stream, clock)


def test_a_stage_has_a_line_when_it_begins_one_every_half_minute_and_one_when_it_ends(
    lines: Lines, stream: Pieces, clock: Clock
) -> None:
    for done in range(61):
        lines.advance("calibration", done, 60)
        clock.now += 35 / 12
    assert stream.pieces == [
        "calibration begins\n",
        "calibration 11/60 (18 %), 32 s, about 143 s left\n",
        "calibration 22/60 (37 %), 64 s, about 111 s left\n",
        "calibration 33/60 (55 %), 96 s, about 79 s left\n",
        "calibration 44/60 (73 %), 128 s, about 47 s left\n",
        "calibration 55/60 (92 %), 160 s, about 15 s left\n",
        "calibration ends after 175 s\n",
    ]


def test_a_long_step_has_lines_too(lines: Lines, stream: Pieces, clock: Clock) -> None:
    lines.tick()
    lines.advance("run result", 0, 1)
    for _ in range(100):
        clock.now += 1
        lines.tick()
    assert stream.pieces[1:] == [f"run result 0/1 (0 %), {n} s\n" for n in (30, 60, 90)]
    lines.advance("run result", 1, 1)
    clock.now += 100
    lines.tick()
    assert stream.pieces[4:] == ["run result ends after 100 s\n"]


def test_the_watcher_asks_while_nothing_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bars, "LINE_EVERY", 0.0)
    monkeypatch.setattr(bars, "_LOOK_EVERY", 0.001)
    with progress_bars(Console(file=io.StringIO())) as advance:
        advance("copy", 0, 2)
        said = ""
        while said.count("copy 0/2 (0 %)") < 3:
            said += capsys.readouterr().err


def test_lines_are_whole_and_flushed(lines: Lines, stream: Pieces, clock: Clock) -> None:
    for done in range(4):
        lines.advance("copy", done, 3)
        assert stream.flushed == len(stream.pieces)
        clock.now += LINE_EVERY
    assert len(stream.pieces) == 4
    for piece in stream.pieces:
        assert piece.count("\n") == 1 == piece.count("copy")
        assert piece.endswith("\n")
        assert "\r" not in piece
        assert "\x1b" not in piece


def test_long_times_are_in_minutes_and_hours(lines: Lines, stream: Pieces, clock: Clock) -> None:
    lines.advance("distill", 0, 100)
    clock.now += 900
    lines.advance("distill", 5, 100)
    assert stream.pieces[1] == "distill 5/100 (5 %), 15 min, about 4.8 h left\n"


def test_a_run_that_goes_on_estimates_from_its_own_steps(lines: Lines, stream: Pieces, clock: Clock) -> None:
    lines.advance("distill", 80, 100)
    clock.now += 40
    lines.advance("distill", 90, 100)
    assert stream.pieces == ["distill goes on at 80/100\n", "distill 90/100 (90 %), 40 s, about 40 s left\n"]


def test_notes_stand_at_the_end_of_a_line(lines: Lines, stream: Pieces, clock: Clock) -> None:
    lines.note("distill", "before it begins")
    lines.advance("distill", 0, 2)
    lines.note("distill", "loss 0.5")
    clock.now += 30
    lines.advance("distill", 1, 2)
    lines.note("distill", "loss 0.4")
    lines.advance("distill", 2, 2)
    assert [piece.partition(", loss ")[2] for piece in stream.pieces] == ["", "0.5\n", "0.4\n"]


def test_a_stage_ends_once_and_may_begin_again(lines: Lines, stream: Pieces) -> None:
    for done, total in ((0, 1), (0, 8), (8, 8), (1, 1), (1, 1), (0, 8), (8, 8)):
        lines.advance("text", done, total)
    assert stream.pieces == ["text begins\n", "text ends after 0 s\n"] * 2


def test_nobody_reading_ends_no_work(lines: Lines, stream: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(stream, "write", broken)
    lines.advance("copy", 0, 1)
    lines.advance("copy", 1, 1)


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with noted_bars(Console(), quiet=True) as (advance, note):
        advance("copy", 0, 1)
        note("copy", "words")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_bars_and_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = io.StringIO()
    with progress_bars(Console(file=drawn, force_terminal=True, width=100)) as advance:
        advance("copy", 0, 2)
        advance("copy", 2, 2)
    assert "━" in drawn.getvalue()
    assert "2/2" in drawn.getvalue()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_command_line_writes_lines_to_stderr_alone(form: list[str], tmp_path: Path, command: Command) -> None:
    done = command(save_tiny(tmp_path / "in"), "--to", "mqa", "--output", tmp_path / "out", *form)
    assert done.code == 0
    stages = ("check source", "attention", "copy", "verify", "run result")
    assert done.err == ""
    assert [line for line in done.progress if line.endswith(" begins")] == [f"{stage} begins" for stage in stages]
    ends = [line.partition(" ends after ")[0] for line in done.progress if " ends after " in line]
    assert ends == [*stages]
    assert not any(f"{stage} begins" in done.out for stage in stages)
    if form:
        assert json.loads(done.out)["to"] == "mqa"
    checked = command("verify", tmp_path / "out", "--json")
    assert json.loads(checked.out)["model"] == str(tmp_path / "out")
    assert checked.progress[0] == "verify begins"


def test_stdout_of_a_process_is_one_object(tmp_path: Path) -> None:
    words = ["-m", "convert_attn.convert.cli", str(save_tiny(tmp_path / "in")), "--to", "mqa", "--json"]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, "--output", str(tmp_path / "out")], env=quiet, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["to"] == "mqa"
    assert "attention begins\n" in done.stderr
    assert "\r" not in done.stderr
