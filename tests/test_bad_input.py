"""Whatever is wrong, the command says it in one sentence, ends with the right code, and writes nothing."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    Command,
    Outcome,
    config_of,
    contents,
    edit_config,
    edit_tensors,
    json_of,
    reshard,
    save_tiny,
    to_bin,
)
from tiny import HEADS, load, logits_of

from convert_attn.convert import samples

USAGE, FAILURE = 2, 1
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def assert_says(outcome: Outcome, code: int, sentence: str) -> None:
    """One line on stderr, and it is the sentence."""
    assert outcome.code == code, outcome
    assert re.fullmatch(r"Error: [^\n]+\n", outcome.err), outcome.err
    assert re.search(sentence, outcome.err), outcome.err
    assert "Traceback" not in outcome.out + outcome.err


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- options that do not fit each other or the model: gpt2 and llama have 8 heads


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole checkpoints: gpt2/ and llama/."""
    folder = tmp_path_factory.mktemp("models")
    for model_type in ("gpt2", "llama"):
        save_tiny(folder / model_type, model_type)
    return folder


DIVISORS = "choose one of 1, 2, 4, 8"
OPTIONS = {
    "gpt2 --to gqa --groups 3": rf"--groups 3 does not divide the model's 8 K/V heads; {DIVISORS}",
    "gpt2 --to gqa --groups 0": r"--groups is 0, expected at least 1; this model takes 1, 2, 4, 8",
    "gpt2 --to gqa --groups -4": r"--groups is -4, expected at least 1",
    "gpt2 --to gqa --groups 16": rf"--groups is 16 but the model has 8 K/V heads.*; {DIVISORS}",
    "gpt2 --to gqa": r"--to gqa needs --groups N \(one of 1, 2, 4, 8\) or --cache-ratio F",
    "gpt2 --to mqa --groups 4": r"--to mqa always keeps one K/V head: drop --groups",
    "gpt2 --to mqa --cache-ratio 0.5": r"--to mqa always keeps one K/V head: drop --groups / --cache-ratio",
    "gpt2 --to gqa --groups 4 --cache-ratio 0.5": r"--groups and --cache-ratio both say .*: give one of them",
    "gpt2 --to gqa --cache-ratio 0": r"--cache-ratio is 0\.0, expected a share above 0 and at most 1",
    "gpt2 --to gqa --cache-ratio 1.5": r"--cache-ratio is 1\.5, expected a share above 0 and at most 1",
    "gpt2 --to gqa --cache-ratio nan": r"--cache-ratio is nan, expected a share above 0 and at most 1",
    "gpt2 --to gqa --cache-ratio 1/0": "'1/0' is no share such as 0.25 or 1/4",
    "gpt2 --to gqa --cache-ratio 1/4/2": "'1/4/2' is no share such as 0.25 or 1/4",
    "gpt2 --to gqa --cache-ratio half": "'half' is no share such as 0.25 or 1/4",
    "gpt2 --to gqa --cache-ratio 0.01": r"less than one of 8 K/V heads: the smallest ratio is 0\.125",
    "gpt2 --to gqa --groups 4 --method average": r"method 'average' is not known; choose one of .*mean.*subspace",
    "gpt2 --to gqa --groups 4 --layout native": r"no native class holds gpt2 with 4 of 8 .*what fits: gpt2_gqa",
    "llama --to gqa --groups 4 --layout custom": r"no custom class holds llama with 4 of 8 .*what fits: same class",
    "gpt2 --to gqa --groups 4 --device nonsense": r"--device nonsense cannot be used here: ",
    "gpt2 --to gqa --groups 4 --revision main": r"--revision is for Hub ids, but '.*gpt2' is a local folder: drop it",
    "sample:nope --to mqa": r"sample 'nope' is not known",
    "nowhere/at/all --to mqa": r"'nowhere/at/all' is neither a folder nor a Hub id",
    # click's own
    "gpt2 --to mha": r"'--to': 'mha' is not one of .*; see `convert-attn convert --help`",
    "gpt2": r"Missing option '--to'.*; see `convert-attn convert --help`",
    "gpt2 --to gqa --groups four": r"'--groups': 'four' is not a valid integer",
    "gpt2 --to gqa --groups": r"Option '--groups' requires an argument",
    "gpt2 --to gqa --grups 4": r"No such option '?--grups'?.*--groups",
    "gpt2 --to gqa --groups 4 --seed -1": r"'--seed'.* -1 is not in the range",
    "gpt2 llama --to mqa": r"unexpected extra argument",
    "--to mqa": r"Missing argument 'MODEL'; see `convert-attn convert --help`",
    "inspect": r"Missing argument 'MODEL'; see `convert-attn inspect --help`",
    "methods --all": r"No such option '?--all'?; see `convert-attn methods --help`",
}


@pytest.mark.parametrize("line", OPTIONS)
def test_options_that_do_not_fit_are_refused(line: str, models: Path, command: Command, tmp_path: Path) -> None:
    model, *words = [str(models / word) if word in ("gpt2", "llama") else word for word in line.split()]
    before = contents(models)
    for json_too in ([], ["--json"]) if "--to" in words else ([],):
        outcome = command(model, *json_too, *words)
        assert_says(outcome, USAGE, OPTIONS[line])
        assert outcome.out == ""
    assert contents(models) == before
    assert contents(tmp_path) == {}


def test_an_existing_output_is_refused(models: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "gpt2-mqa").mkdir()
    (tmp_path / "gpt2-mqa/config.json").write_text("{}")
    before = contents(tmp_path)
    sentence = r"output folder '.*gpt2-mqa' exists; give --overwrite to replace it, or another --output"
    for options in ([], ["--output", "gpt2-mqa"], ["--dry-run"]):
        assert_says(command(models / "gpt2", "--to", "mqa", *options), USAGE, sentence)
    assert contents(tmp_path) == before


def test_an_unwritable_folder_is_refused(
    models: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    outcome = command(models / "gpt2", "--to", "mqa", "--output", "x/out")
    assert_says(outcome, FAILURE, r"cannot write to '.*': no permission; choose another --output")
    assert contents(tmp_path) == {}


def test_an_unknown_hub_id_without_network_is_refused_at_once(command: Command, tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = command("org/unknown", "--to", "mqa")
    assert time.monotonic() - started < 5
    assert_says(outcome, FAILURE, r"'org/unknown' is not a local folder and not in the cache, and offline mode is on")
    assert contents(tmp_path) == {}


def test_a_sample_is_not_copied_over_what_exists(
    models: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SAMPLES", ("gpt2",))
    monkeypatch.setattr(samples, "sample_path", lambda name: models / name)
    (tmp_path / "there").mkdir()
    assert_says(command("sample", "gpt2", "there"), USAGE, r"'there' exists; give a folder that does not")
    assert_says(command("sample", "bert", "new"), USAGE, r"sample 'bert' is not known; choose one of gpt2")
    assert contents(tmp_path) == {"there": None}
    assert command("sample", "gpt2", "new").code == 0
    assert contents(tmp_path / "new") == contents(models / "gpt2")


# --- checkpoints that are broken, or no source


@dataclass(frozen=True)
class Bad:
    """A way to break the folder of a tiny checkpoint.

    Attributes:
        damage: does it.
        sentence: what the command says of it.
        code: its exit code.
        options: of the command.
    """

    damage: Callable[[Path], object]
    sentence: str
    code: int = FAILURE
    model_type: str = "gpt2"
    options: tuple[str, ...] = ("--to", "gqa", "--groups", "2")


def _set(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: change(tensors[name])}))


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.pop(name))


def _poison(name: str, value: float) -> Callable[[Path], object]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors[name].view(-1)[7].fill_(value))


def _config(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit_config(folder, **values)


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _sharded(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: damage(reshard(folder))


def _cut(name: str, share: float) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * share))


def _index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    """Change the index of two shards."""

    def damage(folder: Path) -> None:
        index = json_of(reshard(folder) / INDEX)
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def _point(file: Any) -> Callable[[Path], object]:
    return _index(lambda weight_map: weight_map.update({"transformer.wte.weight": file}))


def _header(header: dict[str, Any] | bytes, body: int = 16, length: int | None = None) -> Callable[[Path], object]:
    """A safetensors file with this header, and so many bytes after it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = struct.pack("<Q", len(raw) if length is None else length)
    return _write("model.safetensors", prefix + raw + bytes(body))


def _entry(begin: Any, end: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


C_ATTN = "transformer.h.1.attn.c_attn.weight"
LIES = r"header that cannot be read \(.*\); download it again"
UNTRUE = r"header that cannot be true: tensor '.*' starts at byte \d+, expected \d+; download it again"
SIZE = r"is truncated or has bytes left over: its header describes \d+ bytes, the file has \d+; download it again"
LENGTH = r"is no whole safetensors file: its header should have \d+ bytes, the file has \d+; download it again"

CHECKPOINTS = {
    # config.json
    "unknown type": Bad(
        _config(model_type="lama"),
        r"'lama' is not known here, nor to transformers .*; convertible are .*gpt2.*llama.* \(nearest: llama\)",
        USAGE,
    ),
    "encoder only": Bad(_config(model_type="esm"), r"'esm' is encoder-only, and an encoder whose attention", USAGE),
    "no config": Bad(_without("config.json"), r"has no config\.json: give a folder with a transformers", USAGE),
    "config no JSON": Bad(_write("config.json", b"{"), r"config\.json of '.*' is no JSON"),
    "config binary": Bad(_write("config.json", b"\xff\xfe\x00"), r"config\.json of '.*' is no JSON"),
    "config too deep": Bad(_write("config.json", b"[" * 100_000), r"config\.json of '.*' is no JSON"),
    "config a list": Bad(_write("config.json", b"[]"), r"config\.json of '.*' has no model_type"),
    "no model type": Bad(_config(model_type=None), r"config\.json of '.*' has no model_type"),
    "architectures": Bad(_config(architectures="GPT2"), r"has architectures 'GPT2', expected class names"),
    "heads no multiple": Bad(
        _config(num_key_value_heads=3), r"8 query heads and 3 K/V heads, expected a multiple", model_type="llama"
    ),
    "negative kv heads": Bad(_config(num_key_value_heads=-2), r"num_key_value_heads", model_type="llama"),
    "no heads": Bad(_config(n_head=0), r"num_attention_heads 0, expected a positive number"),
    "heads a word": Bad(_config(n_head="eight"), r"config\.json of '.*' (is refused|has num_attention_heads)"),
    "no layers": Bad(_config(n_layer=0), r"num_hidden_layers 0, expected a positive number"),
    "layers a word": Bad(_config(n_layer="two"), r"config\.json of '.*' (is refused|has num_hidden_layers)"),
    "width not divisible": Bad(_config(n_embd=66), r"has hidden_size 66 and 8 query heads, expected a multiple"),
    "other width": Bad(_config(n_embd=128), r"has shape \[64, 192\], expected \[128, 384\] from config\.json"),
    "more layers": Bad(_config(n_layer=3), r"'transformer\.h\.2\.attn\.c_\w+\.weight' is missing"),
    "fewer layers": Bad(_config(n_layer=1), r"'transformer\.h\.1\..*' is not expected by the result's class"),
    "wrong type": Bad(_config(model_type="llama"), r"which every llama checkpoint has"),
    "own code": Bad(
        _config(auto_map={"AutoConfig": "x.Y"}), r"names code of its own .*give --trust-remote-code", USAGE
    ),
    "class without native MQA": Bad(
        _config(architectures=["GPT2ForQuestionAnswering"]),
        r"GPT2ForQuestionAnswering has no counterpart in gpt_bigcode; it can hold .*GPT2LMHeadModel",
        USAGE,
        options=("--to", "mqa", "--layout", "native"),
    ),
    "class without counterpart": Bad(
        _config(architectures=["GPT2DoubleHeadsModel"]),
        r"GPT2DoubleHeadsModel has no counterpart in gpt2_gqa; it can hold",
        USAGE,
    ),
    # shards and their index
    "no weights": Bad(_without("model.safetensors"), r"no weights in .*: expected model\.safetensors"),
    "missing shard": Bad(_sharded(_without(SECOND)), rf"names shard '{SECOND}', which is missing from .*download"),
    "truncated shard": Bad(_sharded(_cut(SECOND, 0.7)), rf"shard '{SECOND}' {SIZE}"),
    "shard without header": Bad(_sharded(_cut(SECOND, 0)), rf"shard '{SECOND}' {LENGTH}"),
    "swapped shard": Bad(
        _sharded(lambda folder: (folder / SECOND.replace("2-of", "1-of")).replace(folder / SECOND)),
        r"is missing from",
    ),
    "index no JSON": Bad(_sharded(_write(INDEX, b"nothing")), r"is no shard index \(.*\); download it again"),
    "index empty": Bad(_sharded(_write(INDEX, b"{}")), r"is no shard index \(it has no 'weight_map'\)"),
    "index a list": Bad(_sharded(_write(INDEX, b'{"weight_map": []}')), r"is no shard index"),
    "index of numbers": Bad(
        _index(lambda names: names.update(dict.fromkeys(names, 3))), r"names shard 3, which is not"
    ),
    "index outside": Bad(
        _point("../elsewhere.safetensors"), r"names shard '\.\./elsewhere\.safetensors', which is not a"
    ),
    "index absolute": Bad(_point("/etc/passwd"), r"names shard '/etc/passwd', which is not a file of its folder"),
    "index other file": Bad(_point("config.json"), r"names shard 'config\.json', which is no \.safetensors file"),
    "index missing file": Bad(_point("x.safetensors"), r"names shard 'x\.safetensors', which is missing from"),
    "index promises more": Bad(
        _index(lambda names: names.update({"absent": SECOND})), rf"promises tensor 'absent' in shard '{SECOND}'"
    ),
    # tensors
    "missing attention": Bad(_remove(C_ATTN), rf"tensor '{re.escape(C_ATTN)}' is missing from"),
    "missing bias": Bad(
        _remove(C_ATTN.replace("weight", "bias")), r"c_attn\.bias' is (missing|expected by the result's class)"
    ),
    "missing norm": Bad(_remove("transformer.h.0.ln_1.weight"), r"'transformer\.h\.0\.ln_1\.weight' is missing from"),
    "missing elsewhere": Bad(
        _remove("transformer.wpe.weight"), r"'transformer\.wpe\.weight' is expected by the result"
    ),
    "wrong shape": Bad(
        _set(C_ATTN, lambda tensor: tensor[:, :-1]), r"has shape \[64, 191\], expected \[64, 192\] from config\.json"
    ),
    "transposed": Bad(_set(C_ATTN, lambda tensor: tensor.T), r"has shape \[192, 64\], expected \[64, 192\]"),
    "wrong shape elsewhere": Bad(
        _set("transformer.wpe.weight", lambda tensor: tensor[:-1]),
        r"shape \[63, 64\], the result's class expects \[64, 64\]",
    ),
    "extra tensor": Bad(
        lambda folder: edit_tensors(folder, lambda tensors: tensors.update({"v_head.weight": torch.ones(1)})),
        r"tensor 'v_head\.weight' is not expected by the result's class",
    ),
    "integers": Bad(
        _set(C_ATTN, lambda tensor: tensor.to(torch.int8)),
        r"is quantised \(tensor '.*c_attn\.weight' has dtype I8\): convert the original",
        USAGE,
    ),
    **{
        f"{value} in {what}": Bad(_poison(name, value), rf"'{re.escape(name)}' .*NaN or infinite")
        for value in (torch.nan, torch.inf)
        for what, name in (
            ("attention", C_ATTN),
            ("norm", "transformer.h.0.ln_1.bias"),
            ("mlp", "transformer.wpe.weight"),
        )
    },
    # headers that lie
    "header overlaps": Bad(_header({"a": _entry(0, 8), "b": _entry(4, 12)}, 12), UNTRUE),
    "header has a gap": Bad(_header({"a": _entry(0, 8), "b": _entry(12, 20)}, 20), UNTRUE),
    "header out of range": Bad(_header({"a": _entry(0, 8), "b": _entry(8, 10**12, [250 * 10**9 - 2])}), SIZE),
    "header leaves bytes": Bad(_header({"a": _entry(0, 8)}, 9), SIZE),
    "header backwards": Bad(_header({"a": _entry(8, 0)}), LIES),
    "header negative": Bad(_header({"a": _entry(-8, 0)}), LIES),
    "header negative shape": Bad(_header({"a": _entry(0, 8, [-1, -2])}), LIES),
    "header other size": Bad(_header({"a": _entry(0, 8, [3])}), r"spans 8 bytes where its shape \[3\] needs 12"),
    "header of words": Bad(_header({"a": _entry("0", "8", ["two"])}), LIES),
    "header of 8 bits": Bad(
        _header({"a": _entry(0, 2, [2], "F8_E4M3")}, 2), r"quantised \(tensor 'a' has dtype F8_E4M3\): convert", USAGE
    ),
    "header of 4 bits": Bad(
        _header({"a": _entry(0, 2, [4], "F4")}, 2), r"dtype F4, which cannot be converted: its weights are quant", USAGE
    ),
    "header unknown dtype": Bad(_header({"a": _entry(0, 2, [2], "C8")}, 2), r"has dtype C8, which cannot be", USAGE),
    "header odd dtype": Bad(_header({"a": _entry(0, 8, [2], ["F32"])}, 8), LIES),
    "header twice the same": Bad(_header(b'{"a":{"dtype":"F32"},"a":{"dtype":"F32"}}'), r"a name appears twice"),
    "header no offsets": Bad(_header({"a": {"shape": [2]}}), r"cannot be read \(it has no 'data_offsets'\)"),
    "header metadata": Bad(_header({"__metadata__": {"a": 1}}, 0), LIES),
    "header a list": Bad(_header(b"[1, 2]"), r"cannot be read \(it is no JSON object\)"),
    "header no JSON": Bad(_header(b"}{"), LIES),
    "header binary": Bad(_header(b"\xff\xff\xff"), LIES),
    "header too deep": Bad(_header(b"[" * 100_000), LIES),
    "header huge": Bad(_header(b"{}", length=2**63), LENGTH),
    "header beyond the end": Bad(_header(b"{}", length=100), LENGTH),
    "header empty": Bad(_header(b"", 0), LENGTH),
    "no safetensors": Bad(_write("model.safetensors", b"once upon a time"), LENGTH),
    "Git LFS pointer": Bad(
        _write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        r"'model\.safetensors' is a Git LFS pointer, not the file: run `git lfs pull`",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_in_one_sentence(case: str, command: Command, tmp_path: Path) -> None:
    bad = CHECKPOINTS[case]
    folder = save_tiny(tmp_path / "in", bad.model_type)
    bad.damage(folder)
    before = contents(tmp_path)
    for extra in ([], ["--json"]):
        outcome = command("in", *bad.options, *extra)
        assert_says(outcome, bad.code, bad.sentence)
        assert not extra or outcome.out == ""
    assert contents(tmp_path) == before


@pytest.mark.parametrize("case", [case for case in CHECKPOINTS if case.startswith(("config", "header", "truncated"))])
def test_inspect_refuses_it_in_one_sentence_too(case: str, command: Command, tmp_path: Path) -> None:
    bad = CHECKPOINTS[case]
    bad.damage(save_tiny(tmp_path / "in", bad.model_type))
    assert_says(command("inspect", "in"), bad.code, bad.sentence)


def test_a_source_that_cannot_be_opened_is_said(
    models: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    outcome = command(models / "gpt2", "--to", "mqa")
    assert_says(outcome, FAILURE, r"Error: Permission denied: .*config\.json")
    assert contents(tmp_path) == {}


# --- code in a checkpoint never runs


class _Malicious:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.touched}",)


@pytest.mark.parametrize("form", ["zip", "old format", "plain pickle", "sharded"])
def test_a_pickle_that_would_run_code_is_not_opened(form: str, command: Command, tmp_path: Path) -> None:
    folder, touched = save_tiny(tmp_path / "in"), tmp_path / "touched"
    state = {"transformer.wte.weight": torch.zeros(97, 64), "other": _Malicious(touched)}
    to_bin(folder, state, old_format=form == "old format", sharded=form == "sharded")
    if form == "plain pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state["other"]))
    before = contents(tmp_path)
    for arguments in (["in", "--to", "mqa"], ["inspect", "in"]):
        assert_says(
            command(*arguments), FAILURE, r"holds more than tensors and was not opened .*convert it to safetens"
        )
        assert not touched.exists()
    assert contents(tmp_path) == before


def test_code_that_a_source_names_is_neither_run_nor_carried_over(command: Command, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "in", "llama")
    expected = logits_of(load(folder))
    (folder / "modeling_own.py").write_text(f"import os\nos.system('touch {tmp_path}/touched')\n")
    auto_map = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    edit_config(folder, auto_map=auto_map)
    outcome = command("in", "--to", "gqa", "--groups", str(HEADS), "--trust-remote-code", "--output", "out")
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "touched").exists()
    assert "auto_map" not in config_of(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), expected)
