"""--for: what is made for an engine is what its rules take; what they do not take is refused, with what to do."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of, edit_config, save_tiny
from transformers import AutoConfig, AutoModelForCausalLM

from convert_attn.convert.conversion.api import plan
from convert_attn.convert.errors import UsageError
from convert_attn.convert.inspection.inspection import inspect
from convert_attn.convert.inspection.serving import verdict
from convert_attn.convert.planning.plan import Plan
from convert_attn.convert.publish.result_config import result_config
from convert_attn.convert.serving_rules import OPTIONS, Engine

BIG: dict[str, Any] = {
    "hidden_size": 640,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 128,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "vocab_size": 64,
}
TARGETS: dict[str, dict[str, Any]] = {"gqa": {"groups": 2}, "mqa": {}, "mla": {"cache_ratio": 0.5}}
FOR = list(OPTIONS.values())


def save_headers(folder: Path, model_type: str, **options: Any) -> Path:
    """A checkpoint with config and headers only: the file's numbers are a hole in it."""
    config = AutoConfig.for_model(model_type, **(BIG | options))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder.mkdir()
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def kept_by(engine: Engine, made: Plan) -> bool:
    """Whether the engine's own rule says so, of a class of its own."""
    rule = verdict(engine, result_config(made))
    native = rule is not None and (rule.loads == "native class" or engine.option == "transformers")
    return rule is not None and native and rule.kept is True


def test_what_is_made_for_an_engine_is_kept_by_it(model_type: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "in", model_type)
    for engine, (to, options) in product(FOR, TARGETS.items()):
        try:
            made = plan(source, to=to, engine=engine.option, **options)
        except UsageError as error:
            assert str(error).startswith(f"--for {engine.option}: ")  # noqa: PT017
            assert engine.name in str(error)  # noqa: PT017
        else:
            assert kept_by(engine, made)


@pytest.mark.parametrize("engine", [engine for engine in FOR if engine.latents], ids=lambda engine: engine.option)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_a_latent_has_sizes_that_the_kernels_take(model_type: str, engine: Engine, tmp_path: Path) -> None:
    options = {"sliding_window": None} if model_type == "mistral" else {}
    source = save_headers(tmp_path / "in", model_type, **options)
    made = plan(source, to="mla", engine=engine.option)
    config = result_config(made)
    assert engine.latents[0].met_by(config)
    assert kept_by(engine, made)
    assert made.target.layout == "native"
    assert not config.get("kv_lora_ranks")
    assert f"--for {engine.option}" in config["convert_attn"]["command"]


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({}, 511),
        ({"rank": 255}, 255),
        ({"rope_dim": 64}, 511),
        ({"cache_ratio": 0.5}, 511),
        ({"cache_ratio": 0.3}, 255),
    ],
)
def test_vllm_with_sizes_given(options: dict[str, Any], rank: int, tmp_path: Path) -> None:
    """kv_lora_rank is one more than --rank: a channel of the latent undoes its norm."""
    made = plan(save_headers(tmp_path / "in", "llama"), to="mla", engine="vllm", **options)
    config = result_config(made)
    assert (config["kv_lora_rank"], config["qk_rope_head_dim"]) == (rank + 1, 64)
    again = plan(tmp_path / "in", to="mla", engine="vllm", rank=rank, rope_dim=64, layout="native")
    assert again.form == made.form


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}, "hidden size is 128"),
        ({"num_key_value_heads": 1}, "no less than the 256"),
        ({"head_dim": 256}, "this model's are of 256"),
        ({"sliding_window": 32, "model_type": "mistral"}, "see 32 tokens back"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
            "are of type 'linear'",
        ),
        ({"model_type": "gemma", "hidden_size": 640}, "no class that it ships holds a latent of gemma"),
    ],
)
def test_a_model_that_cannot_have_them_is_told_why_and_what_works(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    changes = dict(changes)
    source = save_headers(tmp_path / "in", changes.pop("model_type", "llama"), **changes)
    with pytest.raises(UsageError, match=says) as refusal:
        plan(source, to="mla", engine="vllm")
    grouped = config_of(source)["num_key_value_heads"] == 1
    assert grouped or "; --to gqa works" in str(refusal.value)


def test_a_cpu_takes_heads_of_any_size(tmp_path: Path) -> None:
    source = save_headers(tmp_path / "in", "llama", head_dim=64, num_attention_heads=10, num_key_value_heads=10)
    with pytest.raises(UsageError, match="heads of 128, and this model's are of 64; --for vllm-cpu works; --to gqa"):
        plan(source, to="mla", engine="vllm")
    made = plan(source, to="mla", engine="vllm-cpu")
    assert kept_by(OPTIONS["vllm-cpu"], made)
    assert (made.form.rank, made.form.rope_dim) == (511, 64)
    with pytest.raises(UsageError, match="take --rank 511 --rope-dim 64 "):
        plan(source, to="mla", engine="vllm-cpu", rank=255)


def test_an_engine_without_rules_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--for 'triton' is no engine that there are rules for; choose one of transf"):
        plan(save_tiny(tmp_path / "in"), to="mqa", engine="triton")


def test_other_sizes_than_the_kernels_take_are_refused(tmp_path: Path) -> None:
    source = save_headers(tmp_path / "in", "llama")
    for options in ({"rank": 512}, {"rank": 400}, {"rope_dim": 32}):
        with pytest.raises(UsageError, match="--rank 511 --rope-dim 64 or --rank 255 --rope-dim 64"):
            plan(source, to="mla", engine="vllm", **options)
    with pytest.raises(UsageError, match=r"--cache-ratio 0\.1 of the model's 1280"):
        plan(source, to="mla", engine="vllm", cache_ratio=0.1)
    with pytest.raises(UsageError, match="drop --rank"):
        plan(source, to="mla", engine="vllm", cache_ratio=0.5, rank=511)


@pytest.mark.parametrize("option", ["sglang", "llama.cpp", "ctranslate2", "tgi"])
def test_an_engine_without_a_latent_says_what_to_take_instead(option: str, tmp_path: Path) -> None:
    source = save_headers(tmp_path / "in", "llama")
    with pytest.raises(UsageError, match=r"--to gqa or mqa"):
        plan(source, to="mla", engine=option)  # before it asks for sizes


def test_from_the_command_line(tmp_path: Path, command: Command) -> None:
    source = save_tiny(tmp_path / "in", "llama")
    made = command("convert", source, "--to", "mla", "--rank", "32", "--for", "mlx-lm", "--output", tmp_path / "out")
    assert (made.code, made.err) == (0, "")
    block = config_of(tmp_path / "out")
    assert block["model_type"] == "deepseek_v3"
    assert block["convert_attn"]["command"].endswith("--to mla --rank 32 --layout native --for mlx-lm")
    refused = command("convert", edit_config(source), "--to", "mla", "--rank", "32", "--for", "vllm")
    assert refused.code == 2
    assert refused.err.startswith("Error: --for vllm: ")


def test_inspect_shows_what_an_engine_takes(tmp_path: Path, command: Command) -> None:
    source = save_headers(tmp_path / "in", "llama")
    shown = json.loads(command("inspect", source, "--for", "vllm", "--json").out)["cache"]
    assert [row["name"] for row in shown] == ["MHA", "MQA", "MLA 511 + 64", "MLA 255 + 64"]
    assert [row["bytes_per_token"] for row in shown[2:]] == [2 * 576, 2 * 320]  # with the constant channel
    for option in ("sglang", "tgi", "llama.cpp", "ctranslate2"):
        rows = json.loads(command("inspect", source, "--for", option, "--json").out)["cache"]
        assert not any(row["name"].startswith("MLA") for row in rows)
    (only,) = json.loads(command("inspect", source, "--serving", "--for", "tgi", "--json").out)["serving"]
    assert only["engine"] == "TGI"


@pytest.mark.parametrize("engine", FOR, ids=lambda engine: engine.option)
def test_what_inspect_shows_for_an_engine_is_what_can_be_made(engine: Engine, tmp_path: Path) -> None:
    source = save_headers(tmp_path / "in", "llama")
    for row in inspect(source, engine=engine.option).rows[1:]:
        name = row.name.removeprefix("GQA-").removeprefix("MLA ")
        options: dict[str, Any] = {"to": "mqa"}
        if row.name.startswith("MLA"):
            rank, rope_dim = map(int, name.split(" + "))
            options = {"to": "mla", "rank": rank, "rope_dim": rope_dim}
        made = plan(source, engine=engine.option, **options)
        assert made.cache_bytes[1] == row.bytes_per_token
