"""Nothing lost, nobody let in: killed at random, raced, damaged at random, lied to, linked away.

`--slow` runs many more cases of each.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Command, Outcome, config_of, contents, edit_config, json_of, reshard, save_tiny
from forks import Forks, forks
from hub_server import Hub, Repo
from test_hub import hub, waits  # noqa: F401  fixtures

from convert_attn import ConvertAttnError, UsageError, convert
from convert_attn.convert.checkpoint import writer
from convert_attn.convert.checkpoint.files import own_file
from convert_attn.eval.results.store import Store

FAST = ["--to", "gqa", "--groups", "2", "--method", "mean"]
SIGKILL = 9


def assert_refused(outcome: Outcome) -> None:
    """One sentence and the right code."""
    assert outcome.code in (1, 2), outcome
    assert re.fullmatch(r"Error: [^\n]+\n", outcome.err), outcome.err


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A parent that has converted a tiny model once."""
    home = tmp_path_factory.mktemp("forks")
    source = save_tiny(home / "in")
    with forks(home, [source, *FAST, "--output", home / "warm"]) as parent:
        yield parent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint in two shards, alone in a folder of its own."""
    return reshard(save_tiny(tmp_path / "model/in"))


# --- killed at random moments


def is_left_over(path: Path) -> bool:
    return writer.is_temporary(path)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_killed_at_any_moment_the_output_is_whole_or_not_there(
    overwrite: bool, forked: Forks, source: Path, tmp_path: Path, slow: bool
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    old, new = [source, "--to", "mqa", "--method", "mean"], [source, *FAST]
    expected = {}
    for name, words in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        ended = forked.run([*words, "--output", tmp_path / name / "out"], cwd=tmp_path)[0]
        assert ended.code == 0, ended.err
        expected[name] = contents(tmp_path / name / "out")
        seconds = ended.seconds
    before, draw, killed = contents(tmp_path / "model"), random.Random(0), 0
    command = [*new, "--output", work / "out", *(["--overwrite"] if overwrite else [])]
    for _ in range(40 if slow else 6):
        if overwrite:
            shutil.copytree(tmp_path / "old/out", work / "out")
        ended = forked.run(command, cwd=work, kill_after=draw.uniform(0, seconds))[0]
        killed += ended.signal == SIGKILL
        left = {path.name: path for path in work.iterdir() if path.name != "out"}
        assert all(is_left_over(path) for path in left.values()), left
        whole = contents(work / "out") if (work / "out").exists() else None
        if whole is None and overwrite:  # between the two renames the old one stands aside, whole
            assert [contents(path) for name, path in left.items() if ".old-" in name] == [expected["old"]]
        else:
            assert whole in ([expected["old"], expected["new"]] if overwrite else [None, expected["new"]])
        assert contents(tmp_path / "model") == before
        # and the next run neither minds nor keeps what was left
        again = forked.run([*new, "--output", work / "out", "--overwrite"], cwd=work)[0]
        assert again.code == 0, again.err
        assert [path.name for path in work.iterdir()] == ["out"]
        assert contents(work / "out") == expected["new"]
        shutil.rmtree(work / "out")
    assert killed > 0


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Forks, list[Any], Path]]:
    """A parent that has evaluated a conversion once; the command without --output, and what it made."""
    home = tmp_path_factory.mktemp("eval")
    convert("sample:gpt2", to="mqa", method="mean", output=home / "mqa")
    command = ["eval", "sample:gpt2", home / "mqa", "--no-speed", "--max-tokens", "256", "--window", "32"]
    with forks(home, [*command, "--output", home / "whole"]) as parent:
        yield parent, command, home


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_an_evaluation_killed_at_any_moment_goes_on_where_it_stopped(
    overwrite: bool, measured: tuple[Forks, list[Any], Path], tmp_path: Path, slow: bool
) -> None:
    forked, command, home = measured
    expected, models = json_of(home / "whole/eval.json")["models"], contents(home / "mqa")
    words = [*command, "--output", tmp_path / "out", *(["--overwrite"] if overwrite else [])]
    draw = random.Random(1)
    shutil.copytree(home / "whole", tmp_path / "whole")  # of a run with other settings
    seconds = forked.run([*command, "--output", tmp_path / "out"], cwd=tmp_path)[0].seconds
    shutil.rmtree(tmp_path / "out")
    for _ in range(15 if slow else 2):
        if overwrite:
            shutil.copytree(tmp_path / "whole", tmp_path / "out")
        forked.run(words, cwd=tmp_path, kill_after=draw.uniform(0, seconds))
        for report in tmp_path.glob("out/eval.json"):
            json_of(report)  # whole, or not there
        again = forked.run(words, cwd=tmp_path)[0]
        assert again.code == 0, again.err
        found = json_of(tmp_path / "out/eval.json")
        assert found["complete"] is True
        assert found["models"] == expected
        assert not [path.name for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
        assert contents(home / "mqa") == models
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moment", ["folder made", "settings half written", "part half written", "cleared"])
def test_an_evaluation_killed_at_a_narrow_moment_leaves_a_folder_that_is_still_its_own(
    moment: str, overwrite: bool, tmp_path: Path
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder, settings = tmp_path / "out", {"window": 32}
    (folder / "parts").mkdir(parents=True)
    if moment == "settings half written":
        (folder / f"parts/.settings.json.{dead.pid}").write_text("{")
    if moment == "part half written":
        Store(folder, settings, overwrite=False)
        (folder / f".eval.json.{dead.pid}").write_text("{")
    if moment == "cleared":
        Store(folder, settings, overwrite=False)
        (folder / "eval.json").write_text("{}")
    Store(folder, settings, overwrite)
    assert json_of(folder / "parts/settings.json") == settings
    assert (folder / "eval.json").exists() is (moment == "cleared" and not overwrite)
    assert not list(folder.rglob(".*"))


def test_an_evaluation_does_not_take_another_s_folder_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "out/parts").mkdir(parents=True)
    (tmp_path / "out/parts/engine.txt").write_text("of a car")
    with pytest.raises(UsageError, match="holds something that is no evaluation"):
        Store(tmp_path / "out", {}, overwrite=True)
    assert (tmp_path / "out/parts/engine.txt").exists()


# --- two at once


def test_of_two_conversions_to_one_output_one_wins_and_the_other_says_so(
    forked: Forks, source: Path, tmp_path: Path, slow: bool
) -> None:
    work = tmp_path / "work"
    for round_ in range(10 if slow else 3):
        work.mkdir()
        commands = [
            [source, "--to", "gqa", "--groups", groups, "--method", "mean", "--output", work / "out"]
            for groups in (2, 4)
        ]
        ended = forked.run(*commands, cwd=work)
        assert sorted(run.code for run in ended) == [0, 2], [run.err for run in ended]
        loser = next(run for run in ended if run.code)
        assert re.fullmatch(r"Error: output folder '.*out' (was made by another run meanwhile|exists).*\n", loser.err)
        groups = (2, 4)[[run.code for run in ended].index(0)]
        assert config_of(work / "out")["num_key_value_heads"] == groups, round_
        assert [path.name for path in work.iterdir()] == ["out"]
        shutil.rmtree(work)


def test_two_that_may_overwrite_leave_one_whole_output(forked: Forks, source: Path, tmp_path: Path, slow: bool) -> None:
    work = tmp_path / "work"
    work.mkdir()
    whole = []
    for groups in (2, 4):
        convert(source, to="gqa", groups=groups, method="mean", output=work / f"{groups}/out")
        whole.append(contents(work / f"{groups}/out"))
    convert(source, to="mqa", method="mean", output=work / "out")
    for _ in range(10 if slow else 3):
        commands = [
            [source, "--to", "gqa", "--groups", groups, "--method", "mean", "--output", work / "out", "--overwrite"]
            for groups in (2, 4)
        ]
        ended = forked.run(*commands, cwd=work)
        assert 0 in [run.code for run in ended]
        for run in ended:
            assert run.code == 0 or re.fullmatch(r"Error: [^\n]*made by another run meanwhile[^\n]*\n", run.err), run
        assert contents(work / "out") in whole
        assert sorted(path.name for path in work.iterdir()) == ["2", "4", "out"]


def test_two_conversions_of_one_source_do_not_disturb_each_other(forked: Forks, source: Path, tmp_path: Path) -> None:
    before = contents(source)
    commands = [[source, *FAST, "--output", tmp_path / name / "out"] for name in ("one", "two")]
    assert [run.code for run in forked.run(*commands, cwd=tmp_path)] == [0, 0]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(source) == before


def test_two_threads_of_one_process_do_not_share_a_temporary_folder(source: Path, tmp_path: Path) -> None:
    """Folders are named after processes: the second run would clear away what the first one writes."""
    sentences = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "attention" and not sentences:
            with pytest.raises(UsageError, match=r"another conversion to '.*' is running in this process") as caught:
                convert(source, to="mqa", output=tmp_path / "out")
            sentences.append(str(caught.value))

    convert(source, to="gqa", groups=2, method="mean", output=tmp_path / "out", progress=progress)
    assert config_of(tmp_path / "out")["num_key_value_heads"] == 2
    convert(source, to="mqa", output=tmp_path / "out", overwrite=True)


# --- no permission


def test_a_read_only_file_system_is_refused_in_one_sentence(source: Path, tmp_path: Path, command: Command) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting is not permitted here")
    try:
        outcome = command(source, *FAST, "--output", disk / "out")
        assert_refused(outcome)
        assert re.search("cannot write to '.*disk'", outcome.err)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- files damaged at random


def flip(data: bytearray, draw: random.Random, first: int = 0, last: int | None = None) -> None:
    """Flip one bit."""
    data[draw.randrange(first, last or len(data))] ^= 1 << draw.randrange(8)


def header_length(data: bytes) -> int:
    return 8 + int(struct.unpack("<Q", data[:8])[0])


def _flip_header(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 8))):
        flip(data, draw, 0, header_length(path.read_bytes()))
    path.write_bytes(data)


def _flip_anywhere(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 8))):
        flip(data, draw)
    path.write_bytes(data)


def _truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def _swap_bytes(path: Path, draw: random.Random) -> None:
    """Another byte that JSON could have there."""
    data = bytearray(path.read_bytes())
    end = header_length(bytes(data)) if path.suffix == ".safetensors" else len(data)
    data[draw.randrange(8 if path.suffix == ".safetensors" else 0, end)] = draw.choice(b'0123456789-"{}[],:.eEn\x00 ')
    path.write_bytes(data)


SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
DAMAGE: dict[str, tuple[list[str], Callable[[Path, random.Random], None]]] = {
    "header bits": (SHARDS, _flip_header),
    "header characters": (SHARDS, _swap_bytes),
    "shard bits": (SHARDS, _flip_anywhere),
    "truncated shard": (SHARDS, _truncate),
    "index bits": (["model.safetensors.index.json"], _flip_anywhere),
    "index characters": (["model.safetensors.index.json"], _swap_bytes),
    "truncated index": (["model.safetensors.index.json"], _truncate),
    "config bits": (["config.json"], _flip_anywhere),
    "config characters": (["config.json"], _swap_bytes),
    "truncated config": (["config.json"], _truncate),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_file_damaged_at_random_is_refused_or_makes_a_whole_output(
    model_type: str, case: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    reshard(save_tiny(tmp_path / "in", model_type))
    whole = contents(tmp_path / "in")
    names, damage = DAMAGE[case]
    draw = random.Random(f"{case} {model_type}")
    refused = 0
    for _ in range(150 if slow else 8):
        name = draw.choice(names)
        damage(tmp_path / "in" / name, draw)
        damaged = contents(tmp_path / "in")
        outcome = command("in", *FAST, "--output", "out")
        assert contents(tmp_path / "in") == damaged
        if outcome.code == 0:
            assert {"config.json", "README.md"} <= contents(tmp_path / "out").keys()
            shutil.rmtree(tmp_path / "out")
        else:
            assert_refused(outcome)
            refused += 1
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
        (tmp_path / "in" / name).write_bytes(whole[name] or b"")
    assert refused or "bits" in case or "characters" in case


# --- files that lie: memory stays bounded

MEGABYTE = 2**20


def _header(entries: dict[str, Any] | bytes, body: int = 0, length: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(body)


LIES = {
    "a tensor of a terabyte": _header({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}, 64),
    "dimensions without end": _header({"a": {"dtype": "F32", "shape": [2**62] * 9, "data_offsets": [0, 2**62]}}, 64),
    "a header of an exabyte": _header(b"{}", 64, 2**60),
    "a header of the whole file": _header(b"{}" + b" " * MEGABYTE, 0),
    "a million brackets": _header(b"[" * MEGABYTE),
    "a number of a million digits": _header(b'{"a":{"dtype":"F32","shape":[' + b"9" * MEGABYTE + b"]}}"),
    "a name of a megabyte": _header({"a" * MEGABYTE: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, 16),
    "twenty thousand tensors": _header(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    ),
}


def test_lies_about_sizes_cost_no_memory(forked: Forks, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "in")
    honest = forked.run(["in", *FAST, "--output", "honest"], cwd=tmp_path)[0]
    assert honest.code == 0, honest.err
    shutil.rmtree(tmp_path / "honest")
    for case, data in LIES.items():
        (folder / "model.safetensors").write_bytes(data)
        ended = forked.run(["in", *FAST, "--output", "out"], cwd=tmp_path)[0]
        assert ended.signal == 0, case
        assert_refused(Outcome(ended.code, ended.out, ended.err))
        assert len(ended.err) < 2 * MEGABYTE
        assert ended.peak < honest.peak + 100 * MEGABYTE, case
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_sizes_in_the_config_cost_no_memory(forked: Forks, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "in", "llama")
    honest = forked.run(["in", *FAST, "--output", "honest"], cwd=tmp_path)[0]
    shutil.rmtree(tmp_path / "honest")
    original = config_of(folder)
    keys = [f"num_{what}" for what in ("attention_heads", "key_value_heads", "hidden_layers", "labels")]
    for key in (*keys, "hidden_size", "intermediate_size", "vocab_size", "head_dim"):
        edit_config(folder, **original | {key: 2**40})
        ended = forked.run(["in", *FAST, "--output", "out"], cwd=tmp_path)[0]
        assert ended.signal == 0, key
        assert_refused(Outcome(ended.code, ended.out, ended.err))
        assert ended.peak < honest.peak + 100 * MEGABYTE, key


def test_a_config_of_a_gigabyte_is_not_read(tmp_path: Path, command: Command) -> None:
    folder = save_tiny(tmp_path / "in")
    os.truncate(folder / "config.json", 2**30)  # sparse
    outcome = command(folder, *FAST, "--output", tmp_path / "out")
    assert_refused(outcome)
    assert "it has more than 100000000 bytes" in outcome.err


# --- links out of the folder


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "LICENSE", "README.md", "model.safetensors.index.json", SHARDS[0]],
)
@pytest.mark.parametrize("far", ["../private/secret", "/etc/hostname"])
def test_a_link_out_of_the_folder_is_not_followed(far: str, name: str, source: Path, command: Command) -> None:
    secret = source.parent / "private/secret"
    secret.parent.mkdir()
    secret.write_bytes((source / name).read_bytes() if (source / name).exists() else b"{}")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(far)
    if not (source / name).exists():
        pytest.skip(f"no {far} here")
    outcome = command(source, *FAST, "--output", source.parent / "out")
    assert_refused(outcome)
    assert f"'{name}' in {source} is a link out of the folder" in outcome.err
    assert not (source.parent / "out").exists()


def test_links_within_the_folder_and_to_the_folder_are_fine(source: Path, tmp_path: Path) -> None:
    (source / "LICENSE").write_text("free")
    (source / "LICENSE.md").symlink_to("LICENSE")
    (tmp_path / "link").symlink_to(source, target_is_directory=True)
    convert(tmp_path / "link", to="gqa", groups=2, method="mean", output=tmp_path / "out")
    assert (tmp_path / "out/LICENSE.md").read_text() == "free"
    assert not (tmp_path / "out/LICENSE.md").is_symlink()


def test_only_the_blobs_of_a_cache_are_linked_to(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    (snapshot / "sub").mkdir(parents=True)
    for name in ("blobs", "refs"):
        (tmp_path / f"models--a--b/{name}").mkdir()
        (tmp_path / f"models--a--b/{name}/x").touch()
    for folder, up in ((snapshot, "../.."), (snapshot / "sub", "../../..")):
        (folder / "good.json").symlink_to(f"{up}/blobs/x")
        (folder / "bad.json").symlink_to(f"{up}/refs/x")
        assert own_file(folder, "good.json").is_file()
        with pytest.raises(UsageError, match=r"'bad\.json' in .* is a link out of the folder"):
            own_file(folder, "bad.json")


# --- names that lead out of the folder, from a Hub that lies

EVIL = [
    "../evil.json",
    "../../evil.json",
    "/tmp/evil.json",
    "..\\evil.json",
    "a/../../evil.json",
    ".git/hooks/evil.txt",
]


@pytest.mark.parametrize("name", EVIL)
def test_a_hub_cannot_write_beside_its_snapshot(name: str, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    files = {path.name: path.read_bytes() for path in save_tiny(tmp_path / "in", "llama").iterdir()}
    hub.repos["org/evil"] = Repo()
    commit = hub.repos["org/evil"].add("evil", files | {name: b"evil"})
    try:
        convert("org/evil", to="gqa", groups=2, method="mean", output=tmp_path / "out")
    except ConvertAttnError:
        assert not (tmp_path / "out").exists()
    found = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]
    inside = tmp_path / "cache/models--org--evil"
    assert all(path.is_relative_to(inside) for path in found), found
    assert not Path("/tmp/evil.json").exists()
    assert not any("evil" in str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
    assert commit
