"""Healing killed at random moments: the output whole or absent, and `--resume` ending where a whole run ends.

`--slow` kills many more times.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import contents, tensors_of
from forks import Ended, Forks, forks
from test_heal import EXACT, FAST, LENGTH, Made, assert_same

SIGKILL = 9


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Forks, list[Any], Made]]:
    """A parent with everything imported, a command without --output, and what it is about; `whole` is its result."""
    home = tmp_path_factory.mktemp("heal")
    made = Made(home / "made")
    words = ["heal", made.student, "--teacher", made.teacher, "--data", made.data, "--cpu", "--seq-len", LENGTH]
    words += ["--tokens", FAST["tokens"], "--batch-size", "4", "--selection-tokens", FAST["selection_tokens"]]
    with forks(home, [made.teacher, "--to", "mqa", "--method", "mean", "--output", home / "warm"]) as parent:
        assert _run(parent, [*words, "--output", home / "whole"], home).code == 0
        yield parent, words, made


def _run(parent: Forks, words: list[Any], folder: Path, kill_after: float | None = None) -> Ended:
    return parent.run(words, cwd=folder, kill_after=kill_after)[0]


def test_killed_at_any_moment_it_goes_on_where_it_stopped(
    healed: tuple[Forks, list[Any], Made], tmp_path: Path, slow: bool
) -> None:
    parent, words, made = healed
    whole, command = made.folder.parent / "whole", [*words, "--output", tmp_path / "out"]
    seconds = _run(parent, command, tmp_path).seconds
    shutil.rmtree(tmp_path / "out")
    before, draw, killed = contents(made.folder), random.Random(2), 0
    for _ in range(30 if slow else 3):
        ended = _run(parent, command, tmp_path, kill_after=draw.uniform(0, seconds))
        killed += ended.signal == SIGKILL
        for _ in range(2):  # what goes on may be killed too
            if not (tmp_path / "out.heal/run.json").exists():
                break
            assert not (tmp_path / "out").exists()
            killed += _run(parent, [*command, "--resume"], tmp_path, draw.uniform(0, seconds)).signal == SIGKILL
        if not (tmp_path / "out").exists():
            resume = ["--resume"] if (tmp_path / "out.heal/run.json").exists() else []
            again = _run(parent, [*command, *resume], tmp_path)
            assert again.code == 0, again.err
        assert_same(whole, tmp_path / "out", **EXACT)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert contents(made.folder) == before
        shutil.rmtree(tmp_path / "out")
    assert killed > 0


def test_a_full_disk_is_said_in_a_sentence_and_leaves_no_output(
    healed: tuple[Forks, list[Any], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from convert_attn import ConvertAttnError
    from convert_attn.convert.heal.state import workplace

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = healed[2]
    monkeypatch.setattr(workplace, "save_file", full)
    with pytest.raises(ConvertAttnError, match=r"the disk that holds .* is full"):
        made.heal("full")
    assert not (made.folder / "full").exists()
    monkeypatch.undo()
    assert tensors_of(made.heal("full", resume=True).output)  # space was made
    shutil.rmtree(made.folder / "full")


def test_a_damaged_workplace_is_said_in_a_sentence(healed: tuple[Forks, list[Any], Made], tmp_path: Path) -> None:
    parent, words, _ = healed
    (tmp_path / "out.heal").mkdir()
    (tmp_path / "out.heal/run.json").write_text("{")
    ended = _run(parent, [*words, "--output", tmp_path / "out", "--resume"], tmp_path)
    assert ended.code == 1
    assert "begin anew" in ended.err
    assert "Traceback" not in ended.err
    (tmp_path / "out.heal/run.json").write_text(json.dumps({"settings": {}, "identity": {}}))
    ended = _run(parent, [*words, "--output", tmp_path / "out", "--resume"], tmp_path)
    assert ended.code == 2
    assert "begun with other" in ended.err


def test_what_a_kill_at_the_very_beginning_leaves_is_no_obstacle_but_files_of_others_are(
    healed: tuple[Forks, list[Any], Made], tmp_path: Path
) -> None:
    parent, words, made = healed
    command, place = [*words, "--output", tmp_path / "out"], tmp_path / "out.heal"
    place.mkdir()
    (place / "pid").write_text("1 is not it")
    (place / ".run.json.123").write_text("{")
    (place / "thesis.txt").write_text("mine")
    ended = _run(parent, command, tmp_path)
    assert ended.code == 2
    assert "is in the way" in ended.err
    assert (place / "thesis.txt").read_text() == "mine"
    (place / "thesis.txt").unlink()
    assert _run(parent, command, tmp_path).code == 0
    assert_same(made.folder.parent / "whole", tmp_path / "out", **EXACT)
