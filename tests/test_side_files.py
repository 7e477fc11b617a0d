"""What lies beside the weights: carried over, or named in a warning; code of others never without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Command, besides_text, config_of, contents, json_of, save_tiny
from hub_server import Hub, Repo
from test_hub import hub, waits  # noqa: F401  fixtures
from transformers import AutoTokenizer

from convert_attn import UsageError, convert
from convert_attn.convert.checkpoint.carried import kind_of, left_sentence
from convert_attn.convert.conversion import api
from convert_attn.convert.samples import sample_path

FAST = {"to": "gqa", "groups": 2, "method": "mean"}
CARRIED = {
    "additional_chat_templates/tool_use.jinja": b"{{ messages }}",
    "modules.json": b'[{"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "own/Dense"}]',
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "own/Dense/model.safetensors": b"weights of its own",
    "USE_POLICY.md": b"be kind",
    "source.spm": b"\x00",
}
LEFT = (
    "mergekit_config.yml",
    "quantize_config.json",
    "modeling_own.py",
    "v_head.safetensors",
    "vae/a.json",
    "vae/b.txt",
)
SILENT = (
    *(".gitattributes", ".git/config", "training_args.bin", "trainer_state.json", "optimizer.pt", "runs/x/events.out"),
    *("onnx/model.onnx", "model.gguf", "pytorch_model.bin", "checkpoint-5/config.json", "params.json", "tf_model.h5"),
)


def fill(folder: Path) -> Path:
    for name, data in (CARRIED | dict.fromkeys((*LEFT, *SILENT), b"{}")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_everything_is_carried_or_named(tmp_path: Path, command: Command) -> None:
    folder = fill(save_tiny(tmp_path / "in", "llama"))
    said = (
        "not carried over from the source: mergekit_config.yml, modeling_own.py, quantize_config.json, "
        "v_head.safetensors, vae/ (2 files)"
    )
    outcome = command(folder, "--to", "gqa", "--groups", "2", "--method", "mean", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert f"Warning: {said}.\n" in outcome.out
    after = contents(tmp_path / "out")
    assert {name: after.get(name) for name in CARRIED} == CARRIED
    files = {name for name, data in after.items() if data is not None} - CARRIED.keys()
    assert files == {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    dry = command(folder, "--to", "mqa", "--json", "--dry-run")
    assert besides_text(json.loads(dry.out)["warnings"]) == [said]


def test_long_lists_are_counted() -> None:
    assert left_sentence(f"{number:02d}.yml" for number in range(20)).endswith("11.yml and 8 more")


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "own/config.json", "additional_chat_templates/x.py"])
def test_folders_that_nothing_names_are_named(name: str) -> None:
    assert kind_of(name, None) == "left"


def test_a_link_out_of_a_folder_below_is_not_followed(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "in", "llama")
    (tmp_path / "secret").write_text("of the user")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/x.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="is a link out of the folder"):
        convert(folder, **FAST, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_hub_s_side_folders_come_along_and_what_stays_there_is_named(
    hub: Hub,  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = fill(save_tiny(tmp_path / "in", "llama"))
    hub.repos["org/source"] = Repo()
    hub.repos["org/source"].add("x", {name: data or b"" for name, data in contents(folder).items() if data is not None})
    result = convert("org/source", **FAST, output=tmp_path / "out")
    after = contents(tmp_path / "out")
    # a folder of another kind of name is known from modules.json alone, which is read too late
    assert {name for name in CARRIED if name not in after} == {"own/Dense/model.safetensors"}
    assert result.warnings == (
        "not carried over from the source: mergekit_config.yml, modeling_own.py, quantize_config.json, "
        "v_head.safetensors, own/ (1 file), vae/ (2 files)",
    )
    asked = [request for request in hub.requests if "/resolve/" in request]
    assert not any(name in request for request in asked for name in ("onnx", ".gguf", ".bin", "vae", ".h5"))


# --- the tokenizer's code

CODE = "from .own_base import Base\n\nclass OwnTokenizer(Base):\n    pass\n"
BASE = "from pathlib import Path\nfrom transformers import GPT2Tokenizer as Base\nPath({!r}).touch()\n"


def with_code(folder: Path, ran: Path, **tokenizer_config: Any) -> Path:
    """A tokenizer made by code in two files."""
    save_tiny(folder, "llama", vocab_size=2048)
    tokenizer = json_of(sample_path("gpt2") / "tokenizer.json")
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(merges))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OwnTokenizer"} | tokenizer_config))
    (folder / "tokenization_own.py").write_text(CODE)
    (folder / "own_base.py").write_text(BASE.format(str(ran)))
    return folder


AUTO_MAP = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}


def test_a_tokenizer_with_code_is_refused_without_trust(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "in", tmp_path / "ran", auto_map=AUTO_MAP)
    with pytest.raises(UsageError, match=r"made by code of its own \(tokenization_own\.py, own_base\.py\).*--trust"):
        convert(folder, **FAST, output=tmp_path / "out")
    other = {"AutoTokenizer": ["org/evil--own.Own", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": other}))
    with pytest.raises(UsageError, match=r"made by code of its own \(org/evil--own\.Own\)"):
        convert(folder, **FAST, output=tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("auto_map", [AUTO_MAP, AUTO_MAP["AutoTokenizer"]], ids=["dict", "list"])
def test_with_trust_the_tokenizer_of_the_result_is_the_source_s(auto_map: Any, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    folder = with_code(tmp_path / "in", ran, auto_map=auto_map)
    made = api.plan(folder, **FAST, trust_remote_code=True, output=tmp_path / "out")
    assert made.warnings[0].startswith("the tokenizer's code (tokenization_own.py, own_base.py) goes with the result")
    assert not ran.exists()  # nothing of it was run
    api.execute(made)
    assert "auto_map" not in config_of(tmp_path / "out")
    assert " --trust-remote-code" in config_of(tmp_path / "out")["convert_attn"]["command"]
    found = [AutoTokenizer.from_pretrained(path, trust_remote_code=True) for path in (folder, tmp_path / "out")]
    assert [type(tokenizer).__name__ for tokenizer in found] == ["OwnTokenizer"] * 2
    assert len({tuple(tokenizer("a text to read")["input_ids"]) for tokenizer in found}) == 1


def test_code_that_is_named_and_not_there_is_said(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "in", tmp_path / "ran", auto_map=AUTO_MAP)
    (folder / "tokenization_own.py").unlink()
    with pytest.raises(UsageError, match=r"is made by tokenization_own\.py, which is not there"):
        convert(folder, **FAST, output=tmp_path / "out")


# --- what nobody thought of


class _PanicError(BaseException):
    """As the Rust code of libraries panics."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (ImportError("install this\nor that"), "ImportError: install this"),
        (_PanicError("index out of range"), "_PanicError: index out of range"),
        (RuntimeError(), "RuntimeError"),
    ],
)
@pytest.mark.parametrize("shown", [False, True])
def test_an_exception_that_nobody_knows_ends_in_a_sentence(
    error: BaseException, sentence: str, shown: bool, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(api, "plan", fail)
    monkeypatch.setenv("CONVERT_ATTN_TRACEBACK", "1" if shown else "")
    outcome = command("sample:gpt2", "--to", "mqa")
    assert outcome.code == 1
    *before, last = outcome.err.splitlines()
    assert last.startswith(f"Error: {sentence} (a failure that convert-attn does not know; CONVERT_ATTN_TRACEBACK=1")
    assert ("Traceback (most recent call last):" in before) is shown
    assert before == [] or shown
