"""The command line and the Python functions behind it: what they print, write and leave unwritten."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of, contents, edit_config, edit_tensors, save_tiny, to_bin
from huggingface_hub import ModelCard
from tiny import HEADS, load, logits_of, tiny_model

import convert_attn
from convert_attn import ConvertAttnError, UsageError, convert, inspect
from convert_attn.convert.checkpoint import shards
from convert_attn.convert.conversion import api
from convert_attn.convert.methods import DEFAULT, methods

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FAST = {"to": "gqa", "groups": 2, "method": "mean"}


@pytest.fixture
def gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny gpt2/ in the working directory, which holds nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return save_tiny(tmp_path / "gpt2")


# --- converting


def test_a_first_word_that_is_no_subcommand_is_the_model(gpt2: Path, tmp_path: Path, command: Command) -> None:
    options = ["--to", "gqa", "--groups", "4", "--output", "out"]
    written, printed = [], []
    for arguments in (["gpt2", *options], ["convert", "gpt2", *options], [*options, "gpt2"]):
        outcome = command(*arguments, "--overwrite")
        assert (outcome.code, outcome.err) == (0, "")
        written.append(contents(tmp_path / "out"))
        printed.append(outcome.out)
    assert written[0] == written[1] == written[2]
    assert printed[0] == printed[1] == printed[2]


def test_a_conversion_prints_what_it_made_and_how_to_load_it(gpt2: Path, command: Command) -> None:
    outcome = command("gpt2", "--to", "gqa", "--groups", "4", "--method", "mean")
    assert outcome.code == 0
    for words in ("gpt2_gqa (custom)", "2 x 8 x 8", "mean", "50.0%", "Wrote gpt2-gqa4", "verified"):
        assert words in outcome.out, words
    assert 'AutoModelForCausalLM.from_pretrained("./gpt2-gqa4", trust_remote_code=True)' in outcome.out


@pytest.mark.parametrize(
    ("options", "name", "groups"),
    [
        (["--to", "gqa", "--groups", "4"], "gpt2-gqa4", 4),
        (["--to", "mqa"], "gpt2-mqa", 1),
        (["--to", "mqa", "--groups", "1"], "gpt2-mqa", 1),
        (["--to", "gqa", "--groups", "1"], "gpt2-gqa1", 1),
        (["--to", "gqa", "--cache-ratio", "0.25"], "gpt2-gqa2", 2),
        (["--to", "gqa", "--cache-ratio", "1/4"], "gpt2-gqa2", 2),
        (["--to", "gqa", "--cache-ratio", "0.49"], "gpt2-gqa2", 2),
        (["--to", "gqa", "--cache-ratio", "1"], "gpt2-gqa8", 8),
    ],
)
@pytest.mark.parametrize("model", ["gpt2", "./gpt2/", "../{parent}/gpt2", "."])
def test_the_default_output_is_called_after_model_and_target(
    model: str,
    options: list[str],
    name: str,
    groups: int,
    gpt2: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if model == ".":
        monkeypatch.chdir(gpt2)
    outcome = command(model.format(parent=gpt2.parent.name), *options, "--dry-run", "--json")
    assert json.loads(outcome.out)["output"] == name
    assert json.loads(outcome.out)["groups"] == groups


JSON_KEYS = {
    "version",
    "source",
    "source_commit",
    "source_num_key_value_heads",
    "to",
    "method",
    "groups",
    "seed",
    "calibration",
    "model_type",
    "result_model_type",
    "layout",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "cache_bytes_per_token_before",
    "cache_bytes_per_token_after",
    "dropped_tensors",
    "output",
    "load",
}


@pytest.mark.parametrize("dry", [True, False])
def test_json_is_one_object_alone_on_stdout(dry: bool, gpt2: Path, tmp_path: Path, command: Command) -> None:
    options = ["--dry-run"] if dry else []
    outcome = command("gpt2", "--to", "gqa", "--groups", "4", "--json", "--seed", "3", *options)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert JSON_KEYS | {"dry_run" if dry else "weights_bytes"} <= found.keys()
    expected = {
        "version": convert_attn.__version__,
        "source": "gpt2",
        "to": "gqa",
        "groups": 4,
        "seed": 3,
        "method": DEFAULT,
        "model_type": "gpt2",
        "result_model_type": "gpt2_gqa",
        "layout": "custom",
        "cache_bytes_per_token_before": 2 * 2 * 8 * 8 * 4,  # layers x (K, V) x heads x head size x fp32
        "cache_bytes_per_token_after": 2 * 2 * 4 * 8 * 4,
        "output": "gpt2-gqa4",
    }
    assert {key: found[key] for key in expected} == expected
    if not dry:
        tensors = (tmp_path / "gpt2-gqa4/model.safetensors").stat().st_size
        assert 0 < tensors - found["weights_bytes"] < 10_000  # the file is the tensors and a header


@pytest.fixture
def _unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor can be read."""

    def refuse(self: shards.Weights, name: str) -> Iterator[bytes]:
        raise AssertionError(f"'{name}' was read")

    for kind in (shards.SafetensorsWeights, shards.PickleWeights):
        for method in ("read", "chunks"):
            monkeypatch.setattr(kind, method, refuse)


@pytest.mark.usefixtures("_unreadable")
def test_a_dry_run_prints_the_plan_reads_no_weights_and_writes_nothing(
    gpt2: Path, tmp_path: Path, command: Command
) -> None:
    before = contents(tmp_path)
    outcome = command("gpt2", "--to", "mqa", "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("gpt2-mqa", "gpt_bigcode (native)", "12.5%", "Dry run: nothing was written."):
        assert words in outcome.out, words
    assert contents(tmp_path) == before


def test_names_with_brackets_are_printed_as_they_are(gpt2: Path, tmp_path: Path, command: Command) -> None:
    gpt2.rename(tmp_path / "a[red]b")
    for arguments in (["a[red]b", "--to", "mqa", "--dry-run"], ["inspect", "a[red]b"]):
        outcome = command(*arguments)
        assert (outcome.code, outcome.err) == (0, "")
        assert "a[red]b" in outcome.out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["convert", "--help"], ["inspect", "-h"]])
def test_help_is_printed(arguments: list[str], command: Command) -> None:
    outcome = command(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: convert-attn")
    assert "pytest" not in outcome.out


def test_version_is_printed(command: Command) -> None:
    outcome = command("--version")
    assert (outcome.code, outcome.out) == (0, f"convert-attn, version {convert_attn.__version__}\n")


def test_an_interrupt_ends_with_130(gpt2: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "execute", interrupt)
    outcome = command("gpt2", "--to", "mqa")
    assert outcome.code == 130
    assert outcome.err.strip() == "Error: interrupted"


def test_methods_lists_every_method(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    listed = json.loads(command("methods", "--json").out)
    assert [row["name"] for row in listed] == list(methods())
    assert [row["name"] for row in listed if row["default"]] == [DEFAULT]
    table = command("methods").out
    for row in listed:
        assert row["name"] in table
        assert row["summary"] in table
        assert row["source"]


# --- inspecting

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}


@pytest.fixture
def llama_2_7b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing but Llama-2-7B's config.json."""
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "Llama-2-7b-hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_2_7B))
    return folder


def test_inspect_needs_only_a_config_and_computes_the_cache(llama_2_7b: Path, command: Command) -> None:
    outcome = command("inspect", llama_2_7b)
    assert (outcome.code, outcome.err) == (0, "")
    lines = {line.split("│")[1].strip(): line for line in outcome.out.splitlines() if line.count("│") > 3}
    for name, megabytes in {"MHA": "536.9 MB", "GQA-8": "134.2 MB", "MQA": "16.8 MB"}.items():
        assert megabytes in lines[name]
    found = json.loads(command("inspect", llama_2_7b, "--json").out)
    plain = (row for row in found["cache"] if "experimental" not in row)
    at_1024 = {row["name"]: row["bytes_at"]["1024"] for row in plain}
    heads = {"MHA": 2**29} | {f"GQA-{g}": 2**24 * g for g in (16, 8, 4, 2)} | {"MQA": 2**24}
    latents = {"MLA 2560 + 1536": 2**28, "MLA 1024 + 1024": 2**27, "MLA 512 + 512": 2**26, "MLA 256 + 256": 2**25}
    assert at_1024 == heads | latents
    facts = {"model_type": "llama", "position": "rope", "dtype": "F16", "parameters": None, "head_dim": 128}
    assert {key: found[key] for key in facts} == facts


def test_inspect_says_which_class_holds_what(gpt2: Path, command: Command) -> None:
    rows = {row["name"]: row["classes"] for row in json.loads(command("inspect", "gpt2", "--json").out)["cache"]}
    assert rows["MQA"] == ["gpt_bigcode (native)", "gpt2_gqa (custom)"]
    assert rows["GQA-4"] == ["gpt2_gqa (custom)"]
    assert rows["MHA"][0] == "gpt2 (source)"


@pytest.mark.usefixtures("_unreadable")
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_inspect_reads_headers_but_no_weights(form: str, tmp_path: Path) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "in")
    if form == "bin":
        to_bin(tmp_path / "in", model.state_dict())
    found = inspect(tmp_path / "in")
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.dtype == "BF16"


def test_other_bin_files_are_no_weights_to_inspect(llama_2_7b: Path) -> None:
    (llama_2_7b / "training_args.bin").write_bytes(b"not weights")
    assert inspect(str(llama_2_7b)).parameters is None


# --- from Python


def test_python_has_the_same_names_and_returns_what_was_made(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in", "llama")
    stages = []
    result = convert(
        str(tmp_path / "in"),
        to="gqa",
        cache_ratio=0.5,
        dtype="float16",
        output=str(tmp_path / "out"),
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert result.output == tmp_path / "out"
    finished = [stage for stage, done, total in stages if done == total]
    assert finished == ["check source", "attention", "copy", "verify", "run result"]
    found = inspect(result.output)
    assert (found.sizes.num_kv_heads, found.dtype) == (4, "F16")
    assert result.nbytes == 2 * (found.parameters or 0)


def test_python_raises_what_the_command_prints(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    with pytest.raises(UsageError, match="does not divide") as caught:
        convert(tmp_path / "in", to="gqa", groups=3, output=tmp_path / "out")
    assert isinstance(caught.value, ConvertAttnError)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="no argument 'grups'"):
        convert(tmp_path / "in", to="gqa", grups=2, output=tmp_path / "out")


def test_python_refuses_a_dtype_that_it_would_not_know(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    with pytest.raises(UsageError, match="dtype 'fp16' is not known; choose one of auto, float32, float16, bfloat16"):
        convert(tmp_path / "in", **FAST, dtype="fp16", output=tmp_path / "out")


def test_the_cache_has_the_dtype_of_the_projections_not_of_the_norms(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in", "llama")

    def half(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items() if "norm" not in name})

    edit_tensors(tmp_path / "in", half)
    plan = api.plan(tmp_path / "in", **FAST, output=tmp_path / "out")
    assert (plan.cache_dtype, plan.cache_bytes[1]) == ("F16", 2 * 2 * 2 * 8 * 2)


def test_a_result_that_carries_our_own_code_converts_further_without_trust(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=4, method="mean", output=tmp_path / "four")
    assert "auto_map" in config_of(tmp_path / "four")
    convert(tmp_path / "four", to="gqa", groups=2, method="mean", output=tmp_path / "two")
    convert(tmp_path / "in", to="gqa", groups=2, method="mean", output=tmp_path / "direct")
    assert contents(tmp_path / "two").keys() == contents(tmp_path / "direct").keys()
    torch.testing.assert_close(logits_of(load(tmp_path / "two")), logits_of(load(tmp_path / "direct")))


# --- config.json of the result


def test_provenance_is_kept_in_the_config(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    convert(tmp_path / "tiny", to="gqa", groups=4, method="random", seed=5, output=tmp_path / "out")
    expected = {
        "version": convert_attn.__version__,
        "source": "tiny",
        "source_commit": None,
        "source_num_key_value_heads": 8,
        "to": "gqa",
        "method": "random",
        "groups": 4,
        "seed": 5,
        "calibration": None,
    }
    found = config_of(tmp_path / "out")["convert_attn"]
    assert {key: found[key] for key in expected} == expected


ROPE = {"rope_type": "default", "rope_theta": 50_000.0}
LEGACY: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("gpt2", {}, {"n_ctx": 64}),
    "llama": ("llama", {"rope_parameters": ROPE}, {"rope_theta": 50_000.0}),
    "qwen2": ("qwen2", {"rope_parameters": ROPE}, {"rope_theta": 50_000.0}),
    "scaled": (
        "llama",
        {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 50_000.0, "rope_scaling": ROPE | {"rope_type": "linear", "factor": 2.0}},
    ),
    "partial": (
        "phi3",
        {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}},
        {"rope_theta": 50_000.0, "partial_rotary_factor": 0.5},
    ),
}


@pytest.mark.parametrize("to", ["gqa", "mqa"])
@pytest.mark.parametrize("case", LEGACY)
def test_keys_that_older_readers_need_are_written(case: str, to: str, tmp_path: Path) -> None:
    model_type, options, expected = LEGACY[case]
    save_tiny(tmp_path / "in", model_type, **options)
    convert(tmp_path / "in", to=to, groups=4 if to == "gqa" else None, method="mean", output=tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert {key: config.get(key) for key in expected} == expected
    # and they do not disturb today's reader
    assert load(tmp_path / "out").config.num_key_value_heads == (4 if to == "gqa" else 1)


def test_a_config_written_by_transformers_4_keeps_its_meaning(tmp_path: Path) -> None:
    """rope_theta and rope_scaling at the top, no rope_parameters, torch_dtype."""
    model = tiny_model("llama", rope_parameters=ROPE | {"rope_type": "linear", "factor": 2.0})
    model.save_pretrained(tmp_path / "in")
    old = {"rope_theta": 50_000.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    edit_config(tmp_path / "in", rope_parameters=None, dtype=None, **old)
    convert(tmp_path / "in", to="gqa", groups=HEADS, output=tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert {key: config[key] for key in old} == old
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(model))


def test_unknown_keys_of_the_config_stay(tmp_path: Path) -> None:
    edit_config(save_tiny(tmp_path / "in"), task_specific_params={"a": 1}, my_own_key=[1, 2])
    convert(tmp_path / "in", **FAST, output=tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["task_specific_params"], config["my_own_key"]) == ({"a": 1}, [1, 2])


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("relative", [False, True])
def test_paths_of_this_machine_do_not_go_into_the_result(
    relative: bool, model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private-name"
    (private / "work").mkdir(parents=True)
    save_tiny(private / "in", model_type)
    monkeypatch.chdir(private / "work")
    model = Path("../../private-name/in") if relative else private / "in"
    convert(model, **FAST, output=Path("../out") if relative else private / "out")
    for path in (private / "out").iterdir():
        if path.suffix in (".json", ".md"):
            assert "private-name" not in path.read_text(), path.name
    assert config_of(private / "out")["convert_attn"]["source"] == "in"


# --- the model card


@pytest.mark.parametrize(
    ("model_type", "to", "result", "custom"),
    [("llama", "gqa", "llama", False), ("gpt2", "gqa", "gpt2_gqa", True), ("gpt2", "mqa", "gpt_bigcode", False)],
)
def test_the_model_card_is_valid_and_its_snippet_loads_the_model(
    model_type: str, to: str, result: str, custom: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "in", model_type)
    convert(tmp_path / "in", to=to, groups=2 if to == "gqa" else None, method="mean", output=tmp_path / "my-model")
    card = ModelCard.load(tmp_path / "my-model/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert {"convert-attn", to, result} <= set(card.data.tags or [])
    assert card.data.base_model is None  # a local folder has no address
    assert "\n\n# my-model\n" in card.text
    assert ("trust_remote_code=True" in card.text) is custom
    snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert snippet is not None
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet[1], names)
    torch.testing.assert_close(logits_of(names["model"].eval()), logits_of(load(tmp_path / "my-model")))


# --- packaging


def test_every_package_on_disk_is_listed_in_pyproject() -> None:
    """One that is missing works in an editable install and is absent from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = settings["package-dir"]
    on_disk = {"convert_attn"}
    for top in ("convert", "modeling", "eval"):
        for file in (ROOT / top).rglob("__init__.py"):
            folder = file.parent.relative_to(ROOT).as_posix()
            if folder != places["convert_attn"]:
                on_disk.add(f"convert_attn.{folder.replace('/', '.')}")
    assert sorted(settings["packages"]) == sorted(on_disk)
    assert {place.split("/")[0] for place in places.values()} == {"convert", "modeling", "eval"}


def test_the_console_script_is_the_tested_function() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"convert-attn": "convert_attn.convert.cli:main"}
