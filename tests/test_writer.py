"""The output folder appears whole and verified or not at all, whatever happens in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import contents, edit_tensors, json_of, reshard, save_tiny, tensors_of

from convert_attn import ConvertAttnError, UsageError, convert
from convert_attn.convert.checkpoint.writer import ShardWriter, whole_or_nothing
from convert_attn.convert.conversion import api, run
from convert_attn.convert.conversion.run import execute
from convert_attn.convert.fitting.layers import Layers
from convert_attn.convert.verification.stored import verify_folder

FAST = {"to": "gqa", "groups": 2, "method": "mean"}


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint in two shards, alone in a folder of its own."""
    return reshard(save_tiny(tmp_path / "model/in"))


# --- an output that exists


def test_an_existing_output_is_refused_and_left_as_it_is(source: Path, tmp_path: Path) -> None:
    convert(source, **FAST, output=tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"output folder '.*' exists; give --overwrite"):
        convert(source, to="mqa", output=tmp_path / "out")
    assert contents(tmp_path) == before


def test_overwrite_replaces_the_whole_folder_at_the_end(source: Path, tmp_path: Path) -> None:
    convert(source, **FAST, output=tmp_path / "out")
    (tmp_path / "out/leftover.txt").write_text("of the old one")
    before = contents(tmp_path / "out")
    seen = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        assert contents(tmp_path / "out") == before

    convert(source, to="mqa", method="mean", output=tmp_path / "out", overwrite=True, progress=progress)
    assert set(seen) == {"check source", "attention", "copy", "verify", "run result"}
    after = contents(tmp_path / "out")
    assert "leftover.txt" not in after
    assert json_of(tmp_path / "out/config.json")["num_key_value_heads"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_holds_something_else_is_never_overwritten(overwrite: bool, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"output folder '.*' (exists|holds something that is no checkpoint)"):
        convert(source, **FAST, output=tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path.parent / "model")])
def test_an_output_that_is_no_folder_is_never_overwritten(
    make: Callable[[Path], None], overwrite: bool, source: Path, tmp_path: Path
) -> None:
    make(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"output '.*' exists and is no folder"):
        convert(source, **FAST, output=tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("output", ["model/in", "model"])
def test_a_source_is_never_replaced_by_its_conversion(output: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "model/config.json").write_text("{}")  # so that it looks like a checkpoint
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="a conversion never replaces its source"):
        convert(source, **FAST, output=tmp_path / output, overwrite=True)
    assert contents(tmp_path) == before


def test_an_empty_folder_may_be_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(source, **FAST, output=tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/config.json").is_file()


def test_an_output_made_by_another_run_meanwhile_is_left(source: Path, tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "attention":
            (tmp_path / "out").mkdir(exist_ok=True)

    with pytest.raises(UsageError, match="was made by another run meanwhile"):
        convert(source, **FAST, output=tmp_path / "out", progress=progress)
    assert contents(tmp_path / "out") == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_parents_of_the_output_are_made(source: Path, tmp_path: Path) -> None:
    convert(source, **FAST, output=tmp_path / "a/b/out")
    assert (tmp_path / "a/b/out/config.json").is_file()


# --- failures in the middle


def _share_fails(patch: pytest.MonkeyPatch) -> None:
    def share(*arguments: object) -> None:
        raise ZeroDivisionError("a bug in a method")

    patch.setattr(Layers, "convert", share)


def _share_gives_nan(patch: pytest.MonkeyPatch) -> None:
    real = Layers.convert

    def convert(*arguments: Any) -> Any:
        weights = real(*arguments)
        return replace(weights, q=weights.q * torch.nan)

    patch.setattr(Layers, "convert", convert)


def _side_file_fails(patch: pytest.MonkeyPatch) -> None:
    def write(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "README.md")

    patch.setattr(run, "write_side_files", write)


def _interrupted(patch: pytest.MonkeyPatch) -> None:
    def verify(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt("Ctrl-C")

    patch.setattr(run, "verify_folder", verify)


def _tensor_skipped(patch: pytest.MonkeyPatch) -> None:
    real = ShardWriter.put

    def put(self: ShardWriter, name: str, chunks: Any) -> None:
        if "ln_f" not in name:
            real(self, name, chunks)

    patch.setattr(ShardWriter, "put", put)


def _tensor_too_short(patch: pytest.MonkeyPatch) -> None:
    real = ShardWriter.put

    def put(self: ShardWriter, name: str, chunks: Any) -> None:
        real(self, name, [b"".join(chunks)[:-1]])

    patch.setattr(ShardWriter, "put", put)


FAILURES: dict[str, tuple[Any, type[BaseException], str]] = {
    "bug": (_share_fails, ZeroDivisionError, "a bug in a method"),
    "nan": (_share_gives_nan, ConvertAttnError, r"'transformer\.h\.0\.attn.* numbers that do not fit F32"),
    "side file": (_side_file_fails, ConvertAttnError, r"writing '.*' failed: .*Permission denied"),
    "interrupt": (_interrupted, KeyboardInterrupt, "Ctrl-C"),
    "skipped": (_tensor_skipped, ConvertAttnError, r"tensor 'transformer\.ln_f\.bias' was never written"),
    "short": (_tensor_too_short, ConvertAttnError, r"tensor '.*' has \d+ bytes or more, expected \d+"),
}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_in_the_middle_leaves_nothing_behind(
    failure: str, existing: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existing:
        convert(source, to="mqa", method="mean", output=tmp_path / "out")
    before = contents(tmp_path)
    break_it, kind, sentence = FAILURES[failure]
    break_it(monkeypatch)
    with pytest.raises(kind, match=sentence):
        convert(source, **FAST, output=tmp_path / "out", overwrite=existing)
    assert contents(tmp_path) == before


def test_a_source_that_shrinks_while_it_is_read_is_noticed(source: Path, tmp_path: Path) -> None:
    plan = api.plan(source, **FAST, output=tmp_path / "out")
    shard = source / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(ConvertAttnError, match=f"shard '{shard.name}' became shorter while it was read"):
        execute(plan)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- killed

KILLED = ["attention 1", "copy 3", "verify 5", "run result 0", "rename 0"]
DRIVER = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from convert_attn import convert

    base, *moments = sys.argv[1:]
    real = os.rename

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def run(moment):
        def progress(stage, done, total):
            if f"{stage} {done}" == moment:
                die()

        def rename(old, new):
            real(old, new)
            if moment == "rename 0":
                die()

        os.rename = rename
        output = Path(base, moment.replace(" ", "-"))
        convert(Path(base, "model/in"), to="gqa", groups=2, method="mean", output=output,
                overwrite=output.exists(), progress=progress)

    for moment in moments:
        child = os.fork()  # imports once; no thread has been started yet
        if not child:
            run(moment)
            os._exit(0)
        print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
    """
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which conversions were killed at each moment of KILLED; the output of the last one existed."""
    base = tmp_path_factory.mktemp("killed")
    source = save_tiny(base / "model/in")
    convert(source, to="mqa", method="mean", output=base / "rename-0")
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, str(base), *KILLED], stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    assert ran.stdout.split() == [str(int(signal.SIGKILL))] * len(KILLED)
    return base


@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_run_leaves_no_output_and_the_next_one_works(moment: str, killed: Path) -> None:
    output = killed / moment.replace(" ", "-")
    siblings = [path for path in killed.iterdir() if path.name.startswith(f".{output.name}.")]
    assert siblings
    assert not output.exists()
    if moment == "rename 0":  # the old output had stepped aside: it is back before anything else happens
        with pytest.raises(UsageError, match="exists"), whole_or_nothing(output, overwrite=False):
            pass
        assert json_of(output / "config.json")["num_key_value_heads"] == 1
    convert(killed / "model/in", **FAST, output=output, overwrite=True)
    assert json_of(output / "config.json")["num_key_value_heads"] == 2
    assert [path for path in killed.iterdir() if path.name.startswith(f".{output.name}.")] == []


@pytest.mark.parametrize("name", ["out", "a[b]*"])
def test_only_siblings_of_dead_processes_are_removed(name: str, source: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = [f".{name}.partial-{dead.pid}", f".{name}.partial-{10**30}"]
    kept = [f".{name}.partial-1", f".{name}.partial-mine", f".{name}x.partial-{dead.pid}", f".{name}.notes"]
    for folder in stale + kept:
        (tmp_path / folder).mkdir()
    convert(source, **FAST, output=tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "model", name])


# --- no room, no permission


def _full_put(patch: pytest.MonkeyPatch) -> None:
    def put(self: ShardWriter, name: str, chunks: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(ShardWriter, "put", put)


def _full_device(patch: pytest.MonkeyPatch) -> None:
    """The kernel's own refusal, which comes when buffers are flushed."""
    real = Path.open

    def open_full(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        path = Path("/dev/full") if "w" in mode and self.suffix == ".safetensors" else self
        return real(path, mode, *rest, **options)

    patch.setattr(Path, "open", open_full)


@pytest.mark.parametrize("fill", [_full_put, _full_device])
def test_a_full_disk_is_said_and_nothing_is_left(
    fill: Callable[[pytest.MonkeyPatch], None], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path)
    fill(monkeypatch)
    with pytest.raises(ConvertAttnError, match=r"the disk that holds '.*' is full and nothing was written; free space"):
        convert(source, **FAST, output=tmp_path / "out")
    assert contents(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB, which is less than the tiny checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_disk_that_is_too_small_is_noticed_early_or_late(
    foreseen: bool, source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not foreseen:
        monkeypatch.setattr(run, "check_space", lambda folder, needed: None)
    sentence = r"MB free, the result needs .* MB" if foreseen else "is full and nothing was written"
    with pytest.raises(ConvertAttnError, match=sentence):
        convert(source, **FAST, output=small_disk / "out")
    assert list(small_disk.iterdir()) == []


def test_too_little_space_is_noticed_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConvertAttnError, match=r"has 0 MB free, the result needs \d+ MB; free some space"):
        convert(source, **FAST, output=tmp_path / "out")
    assert contents(tmp_path) == before


def test_a_parent_without_permission_is_refused_before_anything_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConvertAttnError, match=r"cannot write to '.*': no permission; choose another --output"):
        api.plan(source, **FAST, output=tmp_path / "out")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
def test_a_parent_that_takes_no_folder_is_said(source: Path) -> None:
    with pytest.raises(ConvertAttnError, match=r"cannot write to '/proc'|'/proc' has 0 MB free"):
        convert(source, **FAST, output="/proc/out")


def test_an_output_below_a_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"lies below '.*file', which is no folder"):
        convert(source, **FAST, output=tmp_path / "file/out")


# --- reading back


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("model.norm.weight")


def _add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)


def _reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(65)


def _poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.inf


DAMAGE = {
    _drop: r"'model\.norm\.weight' is expected by the result's class",
    _add: r"'model\.layers\.0\.self_attn\.q_norm\.weight' is not expected by the result's class",
    _reshape: r"'model\.norm\.weight' has shape \[65\], the result's class expects \[64\]",
    _poison: r"'model\.layers\.1\.mlp\.up_proj\.weight' has values that are NaN or infinite",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verification_names_the_tensor_that_is_wrong(damage: Any, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", kv_heads=2)
    verify_folder(folder, "AutoModelForCausalLM", silent)
    edit_tensors(folder, damage)
    with pytest.raises(ConvertAttnError, match=DAMAGE[damage]):
        verify_folder(folder, "AutoModelForCausalLM", silent)


@pytest.mark.parametrize("change", [-1, 1])
def test_verification_notices_a_file_of_the_wrong_length(change: int, tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "model", "llama") / "model.safetensors"
    os.truncate(file, file.stat().st_size + change)
    with pytest.raises(ConvertAttnError, match=r"'model\.safetensors' is truncated or has bytes left over"):
        verify_folder(tmp_path / "model", "AutoModelForCausalLM", silent)


def test_verification_says_when_the_class_refuses_the_config(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    with pytest.raises(ConvertAttnError, match=r"config\.json is refused by AutoModelForMaskedLM"):
        verify_folder(folder, "AutoModelForMaskedLM", silent)


def test_a_cast_that_does_not_fit_is_named(tmp_path: Path) -> None:
    edit_tensors(save_tiny(tmp_path / "in"), lambda tensors: tensors["transformer.ln_f.weight"].fill_(1e6))
    with pytest.raises(ConvertAttnError, match=r"'transformer\.ln_f\.weight' .* do not fit F16 \(give another --dtype"):
        convert(tmp_path / "in", **FAST, dtype="float16", output=tmp_path / "out")


# --- the same again


@pytest.mark.parametrize("method", ["subspace", "random"])
def test_the_same_request_gives_the_same_bytes(method: str, source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        convert(source, to="gqa", groups=2, method=method, output=tmp_path / name / "out")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_seed_decides_what_a_random_method_draws(source: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        convert(source, to="gqa", groups=2, method="random", seed=seed, output=tmp_path / str(seed))
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(tensors_of(tmp_path / "0")[name], tensors_of(tmp_path / "1")[name])
