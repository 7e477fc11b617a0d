"""Tasks through lm-eval: ours offline, a YAML of the user's, and the same numbers as lm-eval's own command line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import convert_attn
from convert_attn import ConvertAttnError, UsageError
from convert_attn.convert.samples import sample_path
from convert_attn.eval import tasks
from convert_attn.eval.measures import passages
from convert_attn.eval.tasks import documents, last_words
from convert_attn.eval.tasks.harness import Harness, paired

OWN = ("convert_attn_next_line", "convert_attn_heldout")

YAML = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that needs our own class."""
    folder = tmp_path_factory.mktemp("harness") / "gpt2-mla64"
    convert_attn.convert("sample:gpt2", to="mla", rank=64, output=folder)
    return folder


def _load(folder: Path) -> tuple[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def test_in_memory_and_command_line_give_the_same_numbers(converted: Path, tmp_path: Path) -> None:
    """As a user of lm-eval runs it, with the code that the checkpoint carries."""
    found = Harness(OWN).run(*_load(converted), limit=4)
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", ",".join(OWN), "--limit", "4"]
    command += ["--model_args", f"pretrained={converted},trust_remote_code=True,dtype=float32"]
    command += ["--include_path", str(tasks.FOLDER), "--device", "cpu", "--batch_size", "4"]
    caches = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path)], env=os.environ | caches, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]
    assert set(found) == set(OWN) == set(theirs)
    for task in OWN:
        for metric, value in found[task]["metrics"].items():
            assert value["mean"] == pytest.approx(theirs[task][f"{metric},none"], rel=1e-5), metric
    assert set(found[OWN[0]]["metrics"]) == {"acc", "acc_norm"}
    assert set(found[OWN[1]]["metrics"]) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}


def test_a_model_differs_from_itself_in_nothing() -> None:
    model, tokenizer = _load(sample_path("llama"))
    found = Harness([OWN[0]]).run(model, tokenizer, limit=8)
    differences = paired(found, found)[OWN[0]]
    assert differences == {"acc": {"mean": 0.0, "error": 0.0}, "acc_norm": {"mean": 0.0, "error": 0.0}}
    assert len(found[OWN[0]]["samples"]["acc"]) == 8
    assert sum(found[OWN[0]]["samples"]["acc"]) / 8 == found[OWN[0]]["metrics"]["acc"]["mean"]


def test_paired_differences_keep_documents_together() -> None:
    def result(values: list[float]) -> dict[str, Any]:
        mean = {"mean": sum(values) / len(values), "error": None}
        return {"t": {"metrics": {"acc": mean, "ppl": mean}, "samples": {"acc": values}}}

    found = paired(result([1, 0, 1, 1]), result([1, 1, 1, 0]))["t"]
    assert found["acc"]["mean"] == 0
    assert found["acc"]["error"] == pytest.approx((2 / 3) ** 0.5 / 2)  # of 0, 1, 0, -1
    assert found["ppl"] == {"mean": 0.0, "error": None}


def test_bundled_questions_have_one_right_answer() -> None:
    rows = documents.next_line()["test"]
    text = "\n".join(documents.heldout()["test"]["text"])
    assert len(rows) == 12 * 20
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert f"{row['context']}\n{row['choices'][row['label']]}" in text
    assert rows.to_list() == documents.next_line()["test"].to_list()  # the same questions every time


PROSE = (
    "It was late when Dr. Brown came to the house of the old man, and it was raining on the hills. "
    "He had not seen the place for many years, but he knew that there was a lamp in the window of the kitchen. "
    "The door was open, as it had been in all the days of his youth, and from the hall he could see it all. "
    "She stood by the table with her hands on the cloth and said that they had waited for him since the {word}.\n"
)
CODE = "def f(x):\n    return {x: [x] * 2}  # the list of it and the rest that was to be in there for all of us.\n" * 9


def test_passages_end_before_their_last_word() -> None:
    text = PROSE.format(word="morning") + "\nCHAPTER II\n\n" + PROSE.format(word="war")
    text += "<|endoftext|>\n" + CODE + "<|endoftext|>\n" + PROSE.replace("\n", "").format(word="evening")
    rows = last_words.rows(text)
    assert [row["word"] for row in rows] == ["morning", "evening"]
    for row in rows:
        assert row["context"].startswith("It was late when Dr. Brown came")
        assert row["context"].endswith("waited for him since the")
        assert len(row["context"].split()) >= 60
        assert "\n" not in row["context"]
    assert rows == last_words.rows(text)


def test_sentences_do_not_end_after_a_title_or_an_initial() -> None:
    found = last_words.sentences('He met Mr. A. Brown. "Is it so?" She left! (It was.) Then 3. 4 came, i.e. nothing.')
    assert found == ["He met Mr. A. Brown.", '"Is it so?"', "She left!", "(It was.)", "Then 3. 4 came, i.e. nothing."]


@pytest.mark.parametrize(
    "document",
    [
        "",
        "...",
        CODE,
        "Es war spät, als der alte Mann zu dem Haus kam, und es regnete auf den Hügeln. " * 9,
        "Поздно вечером он пришёл к дому, и было темно. " * 9,
        "| the | of | and |\n|---|---|---|\n| it | was | to |\n" * 9,
    ],
)
def test_only_english_prose_is_asked_about(document: str) -> None:
    assert last_words.is_prose(PROSE.format(word="morning"))
    assert not last_words.is_prose(document)
    assert last_words.rows(document) == []


def test_last_words_are_guessed_and_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As lm-eval scores LAMBADA: by hand, with the model's own logits."""
    text = "<|endoftext|>\n".join(PROSE.format(word=word) for word in ("morning", "evening", "return"))
    monkeypatch.setattr(passages, "general_text", lambda: text)
    model, tokenizer = _load(sample_path("llama"))
    found = Harness(["convert_attn_last_word"]).run(model, tokenizer)["convert_attn_last_word"]
    assert set(found["metrics"]) == {"acc", "perplexity"}
    assert found["higher_is_better"] == {"acc": True, "perplexity": False}
    scores, right = [], []
    for row in last_words.rows(text):
        before = tokenizer(row["context"])["input_ids"]
        both = torch.tensor([tokenizer(f"{row['context']} {row['word']}")["input_ids"]])
        said = model(both).logits[0, :-1].log_softmax(-1)
        asked = range(len(before) - 1, both.shape[1] - 1)
        scores.append(sum(said[at, both[0, at + 1]].item() for at in asked))
        right.append(all(int(said[at].argmax()) == int(both[0, at + 1]) for at in asked))
    assert found["metrics"]["perplexity"]["mean"] == pytest.approx(math.exp(-sum(scores) / 3), rel=1e-3)
    assert found["metrics"]["acc"]["mean"] == sum(right) / 3
    other = json.loads(json.dumps({"t": found}))
    other["t"]["metrics"]["perplexity"]["mean"] += 1
    difference = paired({"t": found}, other)["t"]["perplexity"]  # of perplexities, not of what they are made from
    assert difference == {"mean": pytest.approx(1.0), "error": None}


def test_a_yaml_of_the_users_is_found(tmp_path: Path) -> None:
    data = tmp_path / "colours.jsonl"
    rows = [{"question": f"x{i} is", "choices": ["red", "blue"], "answer": i % 2} for i in range(5)]
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "colours.yaml").write_text(YAML % data)
    model, tokenizer = _load(sample_path("gpt2"))
    found = Harness(["colours"], tmp_path).run(model, tokenizer)
    assert set(found["colours"]["metrics"]) == {"acc"}
    assert len(found["colours"]["samples"]["acc"]) == 5


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"task 'hellaswagg' is not known to lm-eval [\d.]+: did you mean hellaswag"):
        Harness(["hellaswagg"])


def test_a_task_whose_data_are_missing_says_so(tmp_path: Path) -> None:
    (tmp_path / "colours.yaml").write_text(YAML % (tmp_path / "none.jsonl"))
    model, tokenizer = _load(sample_path("gpt2"))
    with pytest.raises(ConvertAttnError, match=r"running colours failed in lm-eval: .*none.jsonl"):
        Harness(["colours"], tmp_path).run(model, tokenizer)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder: give one with YAML tasks"):
        Harness(["colours"], tmp_path / "none")


def test_without_lm_eval_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UsageError, match=r"--tasks needs lm-eval.*pip install 'convert-attn\[eval\]'"):
        Harness(OWN)
