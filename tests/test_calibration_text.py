"""Calibration text as users give it: what works, and what is refused in one sentence with nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Command, config_of, contents, edit_tensors, save_tiny, tensors_of
from tiny import SIZES, load, logits_of, tiny_model

from convert_attn import convert
from convert_attn.convert.samples import sample_path
from convert_attn.convert.text.windows import calibration_windows

VOCABULARY, HIDDEN = SIZES["vocab_size"], SIZES["hidden_size"]
OPTIONS = ("--to", "gqa", "--groups", "2", "--output", "out")
USAGE, FAILURE = 2, 1


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVERT_ATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A tiny gpt2/, without a tokenizer."""
    return save_tiny(tmp_path / "gpt2")


def tokens(count: int, length: int, highest: int = VOCABULARY) -> Any:
    """[count, length] random tokens."""
    return np.random.default_rng(0).integers(0, highest, (count, length))


def converted(command: Command, *options: str | Path, model: str = "gpt2", sizes: tuple[str, ...] = OPTIONS) -> Any:
    """What a conversion that works prints as JSON."""
    outcome = command(model, *sizes, *options, "--json")
    assert outcome.code == 0, outcome
    return json.loads(outcome.out)


# --- little to learn from

SIZES_OF = {
    "gqa": OPTIONS,
    "mla": ("--to", "mla", "--rank", "24", "--output", "out"),
    "share": ("--to", "mla", "--cache-ratio", "0.25", "--output", "out"),
}


@pytest.mark.parametrize(
    ("model_type", "sizes"), [("gpt2", "gqa"), ("gpt2", "share"), ("llama", "gqa"), ("llama", "mla")]
)
def test_fewer_tokens_than_the_hidden_size_work_with_a_warning(
    model_type: str, sizes: str, command: Command, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "model", model_type)
    np.save("text.npy", tokens(3, 12))
    found = converted(command, "--calibration", "text.npy", model="model", sizes=SIZES_OF[sizes])
    (warning,) = found["warnings"]
    assert f"24 tokens for fitting, fewer than the hidden size {HIDDEN}" in warning
    assert logits_of(load(tmp_path / "out")).isfinite().all()


def test_one_window_serves_for_fitting_and_choosing_and_counts_once(gpt2: Path, command: Command) -> None:
    np.save("text.npy", tokens(1, 64))
    found = converted(command, "--calibration", "text.npy")
    assert ["one window long" in warning for warning in found["warnings"]] == [True]
    assert found["calibration"]["tokens"] == 64


@pytest.mark.parametrize(
    ("model_type", "sizes"), [("gpt2", "gqa"), ("gpt2", "share"), ("llama", "gqa"), ("llama", "mla")]
)
def test_a_text_of_one_token_over_and_over_works(model_type: str, sizes: str, command: Command, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", model_type)
    np.save("text.npy", np.full((8, 32), 5))
    converted(command, "--calibration", "text.npy", model="model", sizes=SIZES_OF[sizes])
    assert logits_of(load(tmp_path / "out")).isfinite().all()


@pytest.mark.parametrize(
    ("model_type", "sizes"), [("gpt2", "gqa"), ("gpt2", "share"), ("llama", "gqa"), ("llama", "mla")]
)
def test_dead_heads_do_no_harm(model_type: str, sizes: str, command: Command, tmp_path: Path) -> None:
    """The attention of the first layer is nothing at all."""

    def kill(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".0." in name and ("attn" in name):
                tensor.zero_()

    edit_tensors(save_tiny(tmp_path / "model", model_type), kill)
    np.save("text.npy", tokens(8, 32))
    converted(command, "--calibration", "text.npy", model="model", sizes=SIZES_OF[sizes])
    assert logits_of(load(tmp_path / "out")).isfinite().all()


@pytest.mark.parametrize("sizes", SIZES_OF)
def test_a_norm_that_lets_nothing_through_does_no_harm(sizes: str, command: Command, tmp_path: Path) -> None:
    edit_tensors(
        save_tiny(tmp_path / "model"), lambda t: [t[f"transformer.h.0.ln_1.{k}"].zero_() for k in ("weight", "bias")]
    )
    np.save("text.npy", tokens(8, 32))
    converted(command, "--calibration", "text.npy", model="model", sizes=SIZES_OF[sizes])
    assert logits_of(load(tmp_path / "out")).isfinite().all()


# --- what cannot be read


def _array(array: Any) -> Callable[[], object]:
    return lambda: np.save("text.npy", array)


def _raw(content: bytes, name: str = "text.npy") -> Callable[[], object]:
    return lambda: Path(name).write_bytes(content)


BAD_TOKENS: dict[str, tuple[Callable[[], object], str]] = {
    "one dimension": (_array(tokens(4, 8).ravel()), r"shape \[32\] and dtype int64, expected integers \[windows"),
    "three dimensions": (_array(tokens(4, 8)[None]), r"shape \[1, 4, 8\]"),
    "floats": (_array(tokens(4, 8) * 1.0), "dtype float64, expected integers"),
    "booleans": (_array(tokens(4, 8) > 3), "dtype bool, expected integers"),
    "no windows": (_array(tokens(0, 8)), r"shape \[0, 8\]"),
    "windows of one": (_array(tokens(4, 1)), r"shape \[4, 1\]"),
    "too long": (_array(tokens(4, 65)), "have 65 tokens, the model takes at most 64"),
    "above the vocabulary": (_array(tokens(4, 8) + VOCABULARY), r"token id \d+ but 'gpt2' knows 0 to 96"),
    "last of the vocabulary and one more": (
        _array(np.array([[1, 96], [97, 2]])),
        "token id 97 but 'gpt2' knows 0 to 96",
    ),
    "negative": (_array(tokens(4, 8) - VOCABULARY), r"token id -\d+ but 'gpt2' knows 0 to 96"),
    "too large for int64": (_array(np.full((4, 8), 2**64 - 1, dtype=np.uint64)), "token id .* knows 0 to 96"),
    "pickle": (_array(np.array([[{}, {}]], dtype=object)), "cannot be read"),
    "no array": (_raw(b"tokens"), "cannot be read"),
    "nothing": (_raw(b""), "cannot be read"),
    "half": (lambda: (_array(tokens(9, 9))(), _raw(Path("text.npy").read_bytes()[:200])()), "cannot be read"),
    "half an archive": (_raw(b"PK\x03\x04 and no more"), "cannot be read"),
    "archive": (lambda: (np.savez("text.npz", tokens(4, 8)), Path("text.npz").rename("text.npy")), "an archive"),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_tokens_that_cannot_be_used_are_refused(case: str, gpt2: Path, tmp_path: Path, command: Command) -> None:
    prepare, sentence = BAD_TOKENS[case]
    prepare()
    before = contents(tmp_path)
    outcome = command("gpt2", *OPTIONS, "--calibration", "text.npy")
    assert_refused(outcome, FAILURE, sentence)
    assert contents(tmp_path) == before


def assert_refused(outcome: Any, code: int, sentence: str) -> None:
    """One sentence on stderr."""
    assert outcome.code == code, outcome
    assert re.fullmatch(r"Error: [^\n]+\n", outcome.err), outcome.err
    assert re.search(sentence, outcome.err), outcome.err


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A link to the bundled gpt2 with its tokenizer, at gpt2-sample/."""
    (tmp_path / "gpt2-sample").symlink_to(sample_path("gpt2"))
    return tmp_path / "gpt2-sample"


BAD_TEXT: dict[str, tuple[Callable[[], object], str, int]] = {
    "empty": (_raw(b"", "text.txt"), "'text.txt' is empty", FAILURE),
    "blank": (_raw(b" \n\n", "text.txt"), "'text.txt' is empty", FAILURE),
    "one token": (_raw(b"a", "text.txt"), "has 1 tokens, expected at least 2", FAILURE),
    "missing": (lambda: None, "'text.txt' is not there", USAGE),
    "not UTF-8": (_raw(b"caf\xe9 au lait\n" * 9, "text.txt"), "not UTF-8: byte 0xe9 in line 1", FAILURE),
    "folder": (lambda: Path("text.txt").mkdir(), "is a folder", USAGE),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_text_that_cannot_be_used_is_refused(case: str, sample: Path, tmp_path: Path, command: Command) -> None:
    prepare, sentence, code = BAD_TEXT[case]
    prepare()
    before = contents(tmp_path)
    outcome = command("gpt2-sample", *OPTIONS, "--calibration", "text.txt")
    assert_refused(outcome, code, sentence)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["sample", "text.txt"])
def test_text_for_a_model_without_a_tokenizer_is_refused(
    text: str, model_type: str, tmp_path: Path, command: Command
) -> None:
    """For some classes transformers makes up one that has no words."""
    save_tiny(tmp_path / "model", model_type)
    Path("text.txt").write_text("some text\n")
    before = contents(tmp_path)
    assert_refused(command("model", *OPTIONS, "--calibration", text), FAILURE, "'model' has no tokenizer")
    assert contents(tmp_path) == before


def test_a_tokenizer_of_another_model_is_found_out(gpt2: Path, tmp_path: Path, command: Command) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (gpt2 / name).write_bytes((sample_path("gpt2") / name).read_bytes())
    outcome = command("gpt2", *OPTIONS, "--calibration", "sample", "--calibration-tokens", "512")
    assert_refused(outcome, FAILURE, "'sample' has the token id .* 'gpt2' knows 0 to 96")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_code_of_its_own_is_not_run(gpt2: Path, tmp_path: Path, command: Command) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nclass Own: pass\n"
    (gpt2 / "own.py").write_text(code)
    names = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (gpt2 / "tokenizer_config.json").write_text(json.dumps(names))
    outcome = command("gpt2", *OPTIONS, "--calibration", "sample", "--trust-remote-code")
    assert_refused(outcome, FAILURE, "'gpt2' has no tokenizer that can be loaded")
    assert not (tmp_path / "ran").exists()


BAD_OPTIONS = {
    "--calibration text.npy --method mean": "'mean' reads no text: drop --calibration, or add --refit",
    "--calibration text.npy --method mean --no-refit": "'mean' reads no text: drop --calibration, or add --refit",
    "--calibration none --calibration-tokens 512": "--calibration-tokens needs text: give --calibration",
    "--calibration none --refit": "--refit needs text: give --calibration",
    "--calibration none --refit --method mean": "--refit needs text: give --calibration",
    "--calibration text.npy --calibration-tokens 1": "--calibration-tokens is 1, expected at least 2",
    "--calibration text.npy --calibration-tokens -5": "'-5' is no number of tokens such as 5M, 250K or 1000000",
    "--calibration missing.npy": "'missing.npy' are not there",
    "--calibration ./missing": "'./missing' is not there",
    "--calibration ": "name of the text is empty",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_options_that_do_not_fit_are_refused_before_any_work(
    options: str, gpt2: Path, tmp_path: Path, command: Command
) -> None:
    np.save("text.npy", tokens(4, 32))
    before = contents(tmp_path)
    for flags in ([], ["--dry-run"]):
        assert_refused(command("gpt2", *OPTIONS, *options.split(" "), *flags), USAGE, BAD_OPTIONS[options])
    assert contents(tmp_path) == before


def test_without_a_tokenizer_there_is_no_text_and_a_warning(gpt2: Path, command: Command) -> None:
    found = converted(command, "--no-refit")
    assert found["calibration"] is None
    assert found["quality"] is None
    (warning,) = found["warnings"]
    assert warning.startswith("'gpt2' has no tokenizer, so that layers were fitted from the weights alone")


def test_a_method_that_reads_no_text_can_be_refitted_on_it(gpt2: Path, tmp_path: Path, command: Command) -> None:
    np.save("text.npy", tokens(8, 32))
    converted(command, "--method", "mean", "--calibration", "text.npy", "--refit")
    before = contents(tmp_path / "out")
    converted(command, "--method", "mean", "--overwrite")
    assert contents(tmp_path / "out")["model.safetensors"] != before["model.safetensors"]


def test_a_model_that_gives_no_numbers_is_refused(gpt2: Path, tmp_path: Path, command: Command) -> None:
    edit_tensors(gpt2, lambda t: t["transformer.wte.weight"].mul_(float("inf")))
    np.save("text.npy", tokens(4, 32))
    before = contents(tmp_path)
    outcome = command("gpt2", *OPTIONS, "--calibration", "text.npy")
    assert_refused(outcome, FAILURE, "not finite on the calibration text")
    assert {k: v for k, v in contents(tmp_path).items() if not k.startswith("cache")} == before
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_statistics_that_have_been_damaged_are_named(gpt2: Path, tmp_path: Path, command: Command) -> None:
    np.save("text.npy", tokens(4, 32))
    converted(command, "--calibration", "text.npy")
    (kept,) = (tmp_path / "cache").rglob("layer-0001.safetensors")
    for damage in (lambda: kept.write_bytes(kept.read_bytes()[:100]), kept.unlink):
        damage()
        outcome = command("gpt2", *OPTIONS, "--overwrite", "--calibration", "text.npy")
        assert_refused(outcome, FAILURE, f"'{kept.parent}' .*delete that folder")


def test_a_folder_for_statistics_that_cannot_be_written_is_named(
    gpt2: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("text.npy", tokens(4, 32))
    Path("file").touch()
    monkeypatch.setenv("CONVERT_ATTN_CACHE", str(tmp_path / "file"))
    before = contents(tmp_path)
    outcome = command("gpt2", *OPTIONS, "--calibration", "text.npy")
    assert_refused(outcome, FAILURE, "cannot be kept in .*set CONVERT_ATTN_CACHE")
    assert contents(tmp_path) == before


def test_a_model_without_a_head_cannot_write(tmp_path: Path, command: Command) -> None:
    """A head of random numbers would write random text."""
    tiny_model("llama").base_model.save_pretrained(tmp_path / "model")
    options = ("--to", "mqa", "--output", "out", "--calibration-tokens", "64")
    outcome = command("model", *options, "--calibration", "self")
    assert_refused(outcome, FAILURE, "'model' has no 'lm_head.weight' .* cannot write its own text: give a text file")
    assert not (tmp_path / "out").exists()


# --- text that works


def test_the_own_text_takes_no_notice_of_settings_for_generation(gpt2: Path) -> None:
    found = []
    for settings in ({}, {"repetition_penalty": 9.0, "suppress_tokens": [1, 2, 3], "eos_token_id": 5, "top_p": 0.1}):
        (gpt2 / "generation_config.json").write_text(json.dumps(settings))
        found.append(
            calibration_windows("self", gpt2, name="gpt2", context=64, vocabulary=VOCABULARY, tokens=256, seed=0)
        )
    assert torch.equal(found[0].fit, found[1].fit)


def windows(spec: str, count: int | None = None, seed: int = 0, name: str = "gpt2", context: int = 512) -> Any:
    """Calibration windows of a bundled sample."""
    return calibration_windows(
        spec, sample_path(name), name=name, context=context, vocabulary=2048, tokens=count, seed=seed
    )


def test_the_own_text_is_deterministic_by_seed_and_as_long_as_asked() -> None:
    first, again, other = (windows("self", 128, seed, context=32) for seed in (0, 0, 1))
    assert torch.equal(first.fit, again.fit)
    assert torch.equal(first.selection, again.selection)
    assert not torch.equal(first.fit, other.fit)
    assert first.tokens == 128
    assert (first.fit.shape, first.selection.shape) == ((3, 32), (1, 32))


@pytest.mark.parametrize("spec", ["self", "sample", "text.txt", "text.npy"])
def test_no_more_tokens_than_asked_for(spec: str) -> None:
    Path("text.txt").write_text("def f(x):\n    return x\n" * 200)
    np.save("text.npy", tokens(9, 48))
    for count in (20, 100):
        found = windows(spec, count, context=64)
        assert count / 2 < found.tokens <= count


def test_windows_for_choosing_are_every_eighth_and_disjoint() -> None:
    array = tokens(20, 16)
    np.save("text.npy", array)
    found = windows("text.npy")
    assert found.selection.tolist() == array[7::8].tolist()
    assert found.fit.tolist() == np.delete(array, [7, 15], axis=0).tolist()
    assert found.tokens == 320


def test_the_bundled_text_is_drawn_from_all_over_by_seed() -> None:
    first, again, other = (windows("sample", 4096, seed, context=64) for seed in (0, 0, 1))
    assert first.tokens == 4096
    assert torch.equal(first.fit, again.fit)
    assert not torch.equal(first.fit, other.fit)


@pytest.mark.parametrize("text", ["self", "sample"])
def test_a_sample_is_calibrated_on_its_own_text_or_the_bundled(text: str, tmp_path: Path, command: Command) -> None:
    sizes = ("--to", "mqa", "--calibration-tokens", "512", "--seed", "3", "--output", "out")
    found = converted(command, "--calibration", text, model="sample:gpt2", sizes=sizes)
    assert found["calibration"] == {"text": text, "tokens": 512, "refit": True}
    assert config_of(tmp_path / "out")["convert_attn"]["calibration"] == found["calibration"]
    sizes = ("--to", "mqa", "--output", "plain")
    plain = converted(command, "--calibration", "none", model="sample:gpt2", sizes=sizes)
    assert plain["calibration"] is None
    assert "ruins real ones" in plain["warnings"][0]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "plain")]
    assert files[0] != files[1]


def test_the_tokens_of_a_text_and_the_text_itself_give_the_same(sample: Path, tmp_path: Path) -> None:
    Path("text.txt").write_text("def f(x):\n    return x + 1\n\n" * 400)
    found = windows("text.txt", 2048)  # four of 512
    np.save("text.npy", torch.cat([found.fit, found.selection]).numpy())
    for spec in ("text.txt", "text.npy"):
        convert(sample, to="mqa", calibration=spec, calibration_tokens=2048, refit=False, output=tmp_path / spec[5:])
    first, second = (tensors_of(tmp_path / name) for name in ("txt", "npy"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
