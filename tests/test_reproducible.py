"""The same command makes the same bytes: for every target, in another process, from what config.json says."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import Command, Outcome, config_of, contents, edit_tensors, reshard, save_tiny, to_bin
from huggingface_hub import ModelCard
from tiny import CONVERTIBLE, ENCODERS, HEADS, SEQ2SEQ

from convert_attn import UsageError
from convert_attn.convert.checkpoint.shards import open_weights
from convert_attn.convert.conversion import api
from convert_attn.convert.methods import methods
from convert_attn.convert.planning.provenance import headers_sha256, typed_command
from convert_attn.convert.targets import targets

FORMS: list[dict[str, Any]] = [
    {"to": "gqa", "groups": 2},
    {"to": "mqa"},
    {"to": "mla", "rank": 24, "rope_dim": 16},
    {"to": "mla", "rank": 32},
    {"to": "mla", "rank": 24, "rope_dim": 16, "slots": 8},
    {"to": "mixture-of-layers"},
    {"to": "latent-sequence", "slots": 8},
]


def requests(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(architecture, options) that reach every target, and every method once."""
    found, reached = [], set()
    for model_type in (*CONVERTIBLE, *ENCODERS, *SEQ2SEQ):
        for form in FORMS:
            for layout in ("native", "custom"):
                options = form | {"layout": layout}
                try:
                    plan = api.plan(folder / model_type, **options, output=folder / "out")
                except UsageError:
                    continue
                if plan.target.name not in reached:
                    reached.add(plan.target.name)
                    found.append((model_type, options))
    assert reached == {target.name for target in targets()}
    for name, method in methods().items():
        form = next(form for form in FORMS if form["to"] in method.targets)
        found.append(("llama", form | {"method": name, "seed": 3, "dtype": "bfloat16"}))
    return found


RUNNER = """
import json, sys
from convert_attn.convert.cli import main

for words in json.loads(sys.stdin.read()):
    sys.argv = words
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
"""


def test_the_recorded_command_makes_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    for model_type in (*CONVERTIBLE, *ENCODERS, *SEQ2SEQ):
        save_tiny(tmp_path / model_type, model_type)
    made, again = tmp_path / "made", []
    for number, (model_type, options) in enumerate(requests(tmp_path)):
        api.convert(tmp_path / model_type, **options, output=made / str(number) / "out")
        words = shlex.split(config_of(made / str(number) / "out")["convert_attn"]["command"])
        assert words[:2] == ["convert-attn", model_type]
        again.append([*words, "--output", f"again/{number}/out", "--json"])
    ran = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(again),
        env=os.environ | {"PYTHONHASHSEED": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert contents(made) == contents(tmp_path / "again")
    assert len(again) > len(targets())


def test_config_and_card_say_all_that_is_needed(tmp_path: Path, command: Command) -> None:
    source = save_tiny(tmp_path / "in", "llama")
    api.convert(source, to="gqa", groups=2, method="random", seed=7, output=tmp_path / "out")
    found = config_of(tmp_path / "out")["convert_attn"]
    assert found["command"] == "convert-attn in --to gqa --groups 2 --method random --seed 7"
    assert found["command"] in ModelCard.load(tmp_path / "out/README.md").text
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["transformers"] == transformers.__version__
    assert found["source_headers_sha256"] == headers_sha256(open_weights(source))


def test_paths_of_this_machine_do_not_get_into_the_command(tmp_path: Path) -> None:
    private = tmp_path / "private-name"
    save_tiny(private / "in")
    options: dict[str, Any] = {"to": "mqa", "output": private / "out", "overwrite": True}
    api.convert(private / "in", **options)
    assert "private-name" not in config_of(private / "out")["convert_attn"]["command"]
    assert "overwrite" not in config_of(private / "out")["convert_attn"]["command"]


def test_a_conversion_fitted_on_text_is_made_again_from_its_command(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is named, not the path to it: where it lies is up to who repeats."""
    text = tmp_path / "private-name/text.txt"
    text.parent.mkdir()
    text.write_text("def read(self, path):\n    return path.read_text()\n\n" * 200)
    options = {"to": "gqa", "groups": 2, "calibration": str(text), "calibration_tokens": 1024, "refit": False}
    api.convert("sample:llama", **options, output=tmp_path / "one/out")
    words = shlex.split(config_of(tmp_path / "one/out")["convert_attn"]["command"])
    assert words == shlex.split(
        "convert-attn sample:llama --to gqa --groups 2 --calibration text.txt --calibration-tokens 1024 --no-refit"
    )
    monkeypatch.chdir(text.parent)
    outcome = command(*words[1:], "--output", tmp_path / "two/out")
    assert outcome.code == 0, outcome.err
    assert contents(tmp_path / "two/out") == contents(tmp_path / "one/out")


def test_the_sum_over_headers_tells_checkpoints_apart_and_formats_not(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "one", "llama")
    first = headers_sha256(open_weights(model))
    assert headers_sha256(open_weights(reshard(save_tiny(tmp_path / "two", "llama", seed=1)))) == first
    state = {name: torch.zeros_like(tensor) for name, tensor in _tensors(model).items()}
    assert headers_sha256(open_weights(to_bin(save_tiny(tmp_path / "bin", "llama"), state))) == first
    edit_tensors(model, lambda tensors: tensors.pop("model.norm.weight"))
    assert headers_sha256(open_weights(model)) != first


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    weights = open_weights(folder)
    return {name: weights.read(name) for name in weights.infos}


@pytest.mark.parametrize("groups", [HEADS, 2])
def test_dry_run_and_run_record_the_same(groups: int, tmp_path: Path, command: Command) -> None:
    source = save_tiny(tmp_path / "in")
    words = [source, "--to", "gqa", "--groups", groups, "--output", tmp_path / "out", "--json"]
    dry: Outcome = command(*map(str, words), "--dry-run")
    assert command(*map(str, words)).code == 0
    found = config_of(tmp_path / "out")["convert_attn"]
    assert {key: value for key, value in json.loads(dry.out).items() if key in found} == found


@pytest.mark.parametrize("option", ["--output={}", "{}"])
@pytest.mark.parametrize("place", ["/no/such/folder/out", "~/nowhere/out", "./out", "../else/out"])
def test_a_command_line_tells_no_folders_of_the_machine(place: str, option: str) -> None:
    """What is to be made is not there yet, and its place is no more public than that of what is."""
    said = typed_command(["heal", "org/name", "--data", "wikitext:wikitext-2:train", option.format(place)])
    assert said == f"convert-attn heal org/name --data wikitext:wikitext-2:train {option.format('out')}"
