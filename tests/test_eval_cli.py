"""`convert-attn eval` as a user runs it: reports, resumption, the card, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Command, contents, edit_config, json_of, save_tiny
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import convert_attn
from convert_attn import UsageError, evaluate
from convert_attn.convert.samples import sample_path
from convert_attn.eval import run
from convert_attn.eval.measures.compare import dominances
from convert_attn.eval.measures.figures import estimate, number, size
from convert_attn.eval.results.page import page
from convert_attn.eval.results.report import markdown, sections, verdict

QUICK = ("--window", "128", "--max-tokens", "2048", "--device", "cpu")
TIMED = ("--contexts", "16,32", "--repeats", "2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversions of sample:gpt2."""
    folder = tmp_path_factory.mktemp("eval")
    convert_attn.convert("sample:gpt2", to="gqa", groups=4, output=folder / "gqa4")
    convert_attn.convert("sample:gpt2", to="mla", rank=64, output=folder / "mla64")
    return folder


@pytest.fixture(scope="module")
def document(made: Path) -> dict[str, Any]:
    """What was measured on them; nothing of it is changed by a test."""
    converted = [made / "gqa4", made / "mla64", "sample:gpt2"]
    options: dict[str, Any] = {"window": 128, "max_tokens": 4096, "contexts": (16, 32), "batch_sizes": (1, 2)}
    found = evaluate("sample:gpt2", converted, repeats=2, tasks=["convert_attn_next_line"], limit=3, **options)
    assert found.files == {}
    return found.document


class _Page(HTMLParser):
    """The texts of a page, and all that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _measured(document: dict[str, Any]) -> dict[str, Any]:
    """The models' entries without times."""
    return {model["name"]: (model["quality"], model["probe"], model["cache"]) for model in document["models"]}


# --- what comes out


def test_everything_at_once(made: Path, tmp_path: Path, command: Command) -> None:
    output = tmp_path / "report"
    done = command("eval", "sample:gpt2", made / "gqa4", made / "mla64", *QUICK, *TIMED, "--output", output)
    assert done.code == 0, done.err
    assert "bundled held-out text" in (output / "eval.md").read_text()
    for name in ("gqa4", "mla64"):
        assert name in done.out
    found = json_of(output / "eval.json")
    assert found["complete"] is True
    assert found["command"].startswith("convert-attn eval sample:gpt2")
    assert {"device", "device_name", "threads", "dtype", "torch", "transformers"} <= set(found["environment"])
    for model in found["models"]:
        assert model["cache"]["bytes_per_token"] == model["cache"]["predicted_bytes_per_token"]
        assert model["peak_memory"]["peak_bytes"] > model["peak_memory"]["before_bytes"]
        assert [row["context"] for row in model["speed"]["rows"]] == [16, 32]
        assert model["quality"]["kl"]["mean"] > 0
    assert (output / "eval.png").read_bytes().startswith(b"\x89PNG")
    looked = _Page((output / "eval.html").read_text())
    assert looked.loads
    assert all(place.startswith("data:image/svg+xml;base64,") for place in looked.loads)
    assert not looked.tags & {"script", "link", "iframe"}
    text = " ".join(looked.texts)
    for what in (found["command"], "Overview", "By position in the window", "Copy probe", "Speed", "Memory", "Setup"):
        assert what in text


def test_the_original_against_itself(document: dict[str, Any]) -> None:
    itself = document["models"][2]
    assert itself["name"] == "gpt2 (2)"
    assert itself["quality"]["kl"] == {"mean": 0.0, "error": 0.0}
    assert itself["quality"]["top1"] == {"mean": 1.0, "error": 0.0}
    assert itself["quality"]["perplexity_ratio"]["mean"] == 1
    assert itself["task_differences"]["convert_attn_next_line"]["acc"] == {"mean": 0.0, "error": 0.0}
    assert itself["cache"] == document["original"]["cache"]


def test_every_table_has_a_cell_for_every_heading(document: dict[str, Any]) -> None:
    found = sections(document)
    titles = [section.title for section in found]
    assert titles == [
        "Overview",
        "Quality on the text",
        "By position in the window",
        "Copy probe",
        "Tasks",
        "Speed",
        "Memory",
    ]
    for section in found:
        assert section.note
        for row in section.rows:
            assert len(row) == len(section.header), (section.title, row)
    lines = markdown(document, plot=True).splitlines()
    assert sum(line.startswith("| gqa4 | 16 | 1 | decode |") for line in lines) == 1


def test_names_cannot_write_into_the_page(document: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(document))
    changed["models"][0]["name"] = "<script>alert(1)</script>|"
    looked = _Page(page(changed, {}))
    assert "script" not in looked.tags
    assert any("<script>alert(1)" in text for text in looked.texts)
    table = [line for line in markdown(changed, plot=False).splitlines() if "alert" in line and line.startswith("|")]
    assert all("\\|" in line for line in table)


def test_dominance_follows_kl_and_cache(document: dict[str, Any]) -> None:
    """GQA-4 keeps half the cache, MLA 64 a quarter of it and is nearer to the original."""
    found = {(row["better"], row["worse"]) for row in dominances(document["models"])}
    assert ("mla64", "gqa4") in found
    assert ("gqa4", "mla64") not in found
    two = json.loads(json.dumps(document["models"][:2]))
    for model in two:
        model["quality"], model["cache"] = two[0]["quality"], two[0]["cache"]
    assert dominances(two) == []
    two[1]["cache"] = {"bytes_per_token": 1.0}
    (only,) = dominances(two)
    assert (only["better"], only["worse"]) == (two[1]["name"], two[0]["name"])
    assert verdict({**document, "models": two, "dominance": []}) == [
        "No conversion dominates another: each is better either in KL or in cache."
    ]


def test_another_original_than_the_recorded_one_is_said(made: Path, tmp_path: Path) -> None:
    tokenizer = sample_path("gpt2") / "tokenizer.json"
    other = save_tiny(tmp_path / "other", "gpt2", vocab_size=json_of(sample_path("gpt2") / "config.json")["vocab_size"])
    shutil.copyfile(tokenizer, other / "tokenizer.json")
    options: dict[str, Any] = {"window": 16, "max_tokens": 64, "speed": False}
    said = [note for note in evaluate(other, made / "gqa4", **options).notes if "was made from" in note]
    assert len(said) == 1
    assert "'gqa4' was made from 'sample:gpt2'" in said[0]
    assert not [note for note in evaluate("sample:gpt2", made / "gqa4", **options).notes if "was made from" in note]


def test_carried_code_of_another_version_is_said(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "gqa4", tmp_path / "old"))
    with (folder / "transformers_api.py").open("a") as code:
        code.write("# of another version\n")
    options: dict[str, Any] = {"window": 16, "max_tokens": 64, "speed": False}
    said = [note for note in evaluate("sample:gpt2", folder, **options).notes if "carries code" in note]
    assert len(said) == 1
    assert "('transformers_api.py'): measured is the code of this version" in said[0]
    assert not [note for note in evaluate("sample:gpt2", made / "gqa4", **options).notes if "carries code" in note]


def test_json_is_one_object(made: Path, tmp_path: Path, command: Command) -> None:
    done = command("eval", "sample:gpt2", made / "gqa4", *QUICK, "--no-speed", "--json", "--output", tmp_path / "r")
    assert json.loads(done.out) == json_of(tmp_path / "r" / "eval.json")


def test_without_matplotlib_there_is_a_report_without_plots(
    made: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert_attn.eval.results.files.find_spec", lambda name: None)
    done = command("eval", "sample:gpt2", made / "gqa4", *QUICK, "--no-speed", "--output", tmp_path / "r")
    assert done.code == 0
    assert "matplotlib is not installed" in done.out
    assert not (tmp_path / "r" / "eval.png").exists()
    assert "<img" not in (tmp_path / "r" / "eval.html").read_text()


def test_models_of_different_limits_are_measured_to_the_shortest(tmp_path: Path) -> None:
    long = save_tiny(tmp_path / "long", "llama", vocab_size=2048)
    short = edit_config(Path(shutil.copytree(long, tmp_path / "short")), max_position_embeddings=32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sample_path("gpt2") / name, long)
    found = evaluate(long, short, max_tokens=512, speed=False, device="cpu").document
    assert found["text"]["window"] == 32
    assert "Context limits differ (long 64, short 32 tokens)" in found["notes"][0]
    with pytest.raises(UsageError, match=r"--window is 64, but '.*short' reads at most 32 tokens: give less"):
        evaluate(long, short, window=64, speed=False)
    with pytest.raises(UsageError, match=r"--contexts has 48, but '.*short' reads at most 32 tokens"):
        evaluate(long, short, contexts=[16, 48])


# --- kept results


def test_a_second_run_measures_nothing_again(
    made: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report"
    arguments = (*QUICK, "--no-speed", "--output", output)
    assert command("eval", "sample:gpt2", made / "gqa4", *arguments).code == 0
    first = json_of(output / "eval.json")
    calls: list[str] = []
    real = run.compare_on_text
    monkeypatch.setattr(run, "compare_on_text", lambda *given: calls.append("quality") or real(*given))
    assert command("eval", "sample:gpt2", made / "gqa4", *arguments).code == 0
    assert calls == []
    assert _measured(json_of(output / "eval.json")) == _measured(first)
    assert command("eval", "sample:gpt2", made / "gqa4", made / "mla64", *arguments).code == 0
    assert calls == ["quality"]  # the new one
    assert _measured(json_of(output / "eval.json"))["gqa4"] == _measured(first)["gqa4"]


def test_other_settings_need_overwrite(made: Path, tmp_path: Path, command: Command) -> None:
    output = tmp_path / "report"
    base = ("eval", "sample:gpt2", made / "gqa4", "--no-speed", "--output", output, "--device", "cpu")
    assert command(*base, "--window", "64", "--max-tokens", "1024").code == 0
    before = contents(output)
    refused = command(*base, "--window", "32", "--max-tokens", "1024")
    assert refused.code == 2
    assert "holds an evaluation with other settings (text, window): give --overwrite" in refused.err
    assert contents(output) == before
    assert command(*base, "--window", "32", "--max-tokens", "1024", "--overwrite").code == 0
    assert json_of(output / "eval.json")["text"]["window"] == 32


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_folder_of_the_users_is_left_alone(
    made: Path, tmp_path: Path, command: Command, overwrite: tuple[str, ...]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "eval.json").write_text("{}")
    done = command(
        "eval", "sample:gpt2", made / "gqa4", *QUICK, "--no-speed", "--output", tmp_path / "mine", *overwrite
    )
    assert done.code == 2
    assert "holds something that is no evaluation: choose another --output" in done.err
    assert contents(tmp_path / "mine") == {"eval.json": b"{}"}


def test_interrupted_it_reports_what_is_there_and_goes_on(
    made: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report"
    arguments = ("eval", "sample:gpt2", made / "gqa4", made / "mla64", *QUICK, "--no-speed", "--output", output)
    real, calls = run.compare_on_text, []

    def interrupted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(run, "compare_on_text", interrupted)
    done = command(*arguments)
    assert done.code == 130
    assert f"Interrupted: what was finished is in {output}" in " ".join(done.err.split())
    found = json_of(output / "eval.json")
    assert found["complete"] is False
    assert found["models"][0]["quality"] is not None
    assert found["models"][1]["quality"] is None
    assert "This run was not finished" in (output / "eval.html").read_text()
    assert command(*arguments).code == 0
    assert len(calls) == 3
    assert json_of(output / "eval.json")["complete"] is True


# --- the card


def test_results_go_into_the_card_and_nothing_else_is_lost(made: Path, tmp_path: Path, command: Command) -> None:
    folder = Path(shutil.copytree(made / "gqa4", tmp_path / "gqa4"))
    card = ModelCard.load(folder / "README.md")
    other = EvalResult("text-generation", "other", "Other", "accuracy", 0.5)
    card.data.eval_results, card.data.model_name = [other], "mine"
    card.save(folder / "README.md")
    for _ in range(2):  # a second time replaces the first
        arguments = ("--no-speed", "--update-card", "--output", tmp_path / "r")
        done = command("eval", "sample:gpt2", folder, *QUICK, *arguments)
        assert done.code == 0, done.err
    found = ModelCard.load(folder / "README.md")
    data: ModelCardData = found.data
    quality = json_of(tmp_path / "r" / "eval.json")["models"][0]["quality"]
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results or []}
    assert results.pop(("Other", "accuracy")) == 0.5
    assert {metric: value for (_, metric), value in results.items()} == {
        "perplexity": quality["perplexity"]["mean"],
        "bits_per_byte": quality["bits_per_byte"]["mean"],
        "kl_divergence": quality["kl"]["mean"],
        "top1_agreement": quality["top1"]["mean"],
    }
    assert data.model_name == "mine"
    assert data.tags == card.data.tags
    assert found.text.count("## Measured") == 1
    assert "No quality was measured" not in found.text
    assert "## Load it" in found.text


def test_cards_that_cannot_be_written_are_refused_first(made: Path, tmp_path: Path, command: Command) -> None:
    refused = command("eval", "sample:gpt2", "sample:gpt2", "--update-card", "--output", tmp_path / "r")
    assert refused.code == 2
    assert "--update-card writes into local folders, and 'sample:gpt2' is none" in refused.err
    folder = Path(shutil.copytree(made / "gqa4", tmp_path / "gqa4"))
    (folder / "README.md").write_text("---\ntags: [a\n---\n# mine\n")
    refused = command("eval", "sample:gpt2", folder, "--update-card", "--output", tmp_path / "r")
    assert refused.code == 2
    assert re.search(r"the header of '.*README.md' cannot be read", refused.err)
    assert (folder / "README.md").read_text() == "---\ntags: [a\n---\n# mine\n"
    assert not (tmp_path / "r").exists()


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("sample:gpt2", "sample:gpt3"), "sample 'gpt3' is not known"),
        (("sample:gpt2",), "Missing argument 'CONVERTED"),
        (
            ("sample:gpt2", "sample:gpt2", "--no-speed", "--no-quality"),
            "nothing to measure: --no-quality and --no-speed",
        ),
        (("sample:gpt2", "sample:gpt2", "--contexts", "16,x"), "'16,x' is no list of whole numbers"),
        (("sample:gpt2", "sample:gpt2", "--contexts", "1"), "--contexts has 1, expected at least 2"),
        (("sample:gpt2", "sample:gpt2", "--contexts", "513"), "'sample:gpt2' reads at most 512 tokens"),
        (("sample:gpt2", "sample:gpt2", "--window", "513"), "--window is 513, but 'sample:gpt2' reads at most 512"),
        (("sample:gpt2", "sample:gpt2", "--window", "1"), "--window is 1, expected at least 2 tokens"),
        (("sample:gpt2", "sample:gpt2", "--text", "./none.txt"), "text './none.txt' is not there"),
        (("sample:gpt2", "sample:gpt2", "--tasks", "convert_attn_nextline"), "did you mean convert_attn_next_line"),
        (("sample:gpt2", "sample:gpt2", "--scale", "huge"), "--scale 'huge' is not known"),
        (("sample:gpt2", "sample:gpt2", "--scale", "gpt2", "--no-speed"), "--scale is for the speed part"),
        (("sample:gpt2", "sample:gpt2", "--device", "nowhere"), "--device nowhere cannot be used here"),
    ],
)
def test_wrong_usage_is_one_sentence(
    tmp_path: Path, command: Command, arguments: tuple[str, ...], sentence: str
) -> None:
    done = command("eval", *arguments, "--output", tmp_path / "r")
    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_model_of_another_vocabulary_is_no_conversion(tmp_path: Path, command: Command) -> None:
    other = save_tiny(tmp_path / "other", "gpt2")
    done = command("eval", "sample:gpt2", other, "--output", tmp_path / "r")
    assert done.code == 2
    assert "has a vocabulary of 97 tokens and 'sample:gpt2' one of 2048: it is no conversion of that model" in done.err


def test_code_of_others_runs_only_when_trusted(made: Path, tmp_path: Path, command: Command) -> None:
    folder = Path(shutil.copytree(made / "gqa4", tmp_path / "foreign"))
    edit_config(folder, model_type="foreign", auto_map={"AutoConfig": "configuration_foreign.ForeignConfig"})
    (folder / "configuration_foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    done = command("eval", "sample:gpt2", folder, *QUICK, "--no-speed", "--output", tmp_path / "r")
    assert done.code == 2
    assert (
        "brings code of its own (auto_map in its config.json), which measuring it would run; give --trust" in done.err
    )
    assert not (tmp_path / "ran").exists()


def test_a_model_that_does_not_fit_is_one_sentence(
    made: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert_attn.eval.measures.contenders.free_bytes", lambda device: 10**6)
    done = command("eval", "sample:gpt2", made / "gqa4", *QUICK, "--output", tmp_path / "r")
    assert done.code == 1
    assert "side by side in float32, and cpu has 1.0 MB free: try --dtype bfloat16" in done.err
    assert not (tmp_path / "r").exists()


def test_a_short_text_is_one_sentence(made: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "short.txt").write_text("import os\n")
    done = command("eval", "sample:gpt2", made / "gqa4", "--text", tmp_path / "short.txt", "--output", tmp_path / "r")
    assert done.code == 1
    assert "fewer than one window of 512: give a longer --text, or a smaller --window" in done.err
    assert not (tmp_path / "r").exists()


# --- numbers as they are printed


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (0.00431234, 0.000221, "0.00431 ± 0.00022"),
        (61.847, 5.16, "61.8 ± 5.2"),
        (1234.5, 56.0, "1,234 ± 56"),
        (0.5, None, "0.500"),
        (0.0, 0.0, "0"),
        (3.2e-9, 1.1e-9, "3.2e-09 ± 1.1e-09"),
    ],
)
def test_estimates_end_where_their_error_begins(mean: float, error: float | None, text: str) -> None:
    assert estimate({"mean": mean, "error": error}) == text


def test_numbers_and_sizes() -> None:
    assert [number(value) for value in (None, 0, 1234.5, 12.345, 0.0012345, 1.2e-7)] == [
        *("-", "0", "1,234", "12.3", "0.00123", "1.2e-07"),
    ]
    assert [size(value) for value in (None, 12, 3.2e6, 4.56e9, 4.5e11)] == ["-", "12 B", "3.2 MB", "4.6 GB", "450 GB"]
