"""The rules of `inspect --serving`: complete, well founded, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import Command, edit_config, save_tiny
from test_engines import CASES, ENGINES

from convert_attn import convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.form import LatentCache, SharedHeads
from convert_attn.convert.serving import CUSTOM, RULES, engines, verdicts
from convert_attn.convert.targets import targets

ROOT = Path(__file__).parents[1]
ASKED = ["transformers", "vLLM", "SGLang", "llama.cpp", "CTranslate2", "mlx-lm", "TGI"]
NAMES = {"ctranslate2": "CTranslate2", "mlx_lm": "mlx-lm"}


def result_types() -> set[str]:
    """Every model type that a conversion can end in."""
    known = targets()
    native = {name for name, arch in architectures().items() if arch.config_kv_heads is not None}
    own = {target.becomes for target in known if target.becomes}
    return {str(name) for name in (native | own)}


@pytest.mark.parametrize("model_type", sorted(result_types()))
def test_every_engine_has_a_rule_for_every_result(model_type: str) -> None:
    assert [rule.engine for rule in verdicts({"model_type": model_type})] == ASKED == engines()


def test_rules_say_what_to_do_where_it_does_not_load_or_the_cache_grows() -> None:
    for rule in RULES:
        assert (rule.kept is None) == (rule.loads == "no")
        assert rule.change or rule.kept
        assert not (rule.loads == "native class" and rule.types & CUSTOM)
        assert rule.where


def test_what_was_tried_is_in_this_repository() -> None:
    for rule in RULES:
        assert (ROOT / rule.where).is_file() == (rule.evidence == "tried"), rule.where


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_tried_in_engines_is_what_their_tests_try(engine: str) -> None:
    tried = {name: case.result for name, case in CASES.items() if engine in case.engines}
    said = [rule for rule in RULES if rule.engine == NAMES[engine] and rule.evidence == "tried"]
    loads = {name for rule in said if rule.loads == "native class" for name in rule.types}
    assert loads - {"gpt_bigcode"} == set(tried.values()) - {"gpt_bigcode"}
    assert "gpt_bigcode" in loads  # of mlx-lm a test of its own
    refused = {name for rule in said if rule.loads == "no" for name in rule.types}
    assert refused >= CUSTOM


def test_versions_are_those_that_are_pinned() -> None:
    pins = (ROOT / "pyproject.toml").read_text()
    for rule in RULES:
        if rule.where == "tests/test_engines.py":
            assert f"{rule.engine.lower()}=={rule.version}" in pins


def test_inspect_shows_them(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    source = save_tiny(tmp_path / "in", "llama")
    convert(source, to="mla", rank=32, rope_dim=16, output=tmp_path / "out")
    outcome = command("inspect", tmp_path / "out", "--serving")
    assert (outcome.code, outcome.err) == (0, "")
    lines = {line.split("│")[1].strip(): line for line in outcome.out.splitlines() if line.count("│") > 3}
    assert "not kept" in lines["vLLM"]
    assert "convert --to gqa" in lines["vLLM"]
    found = json.loads(command("inspect", tmp_path / "out", "--serving", "--json").out)
    assert found["model_type"] == "llama_mla"
    assert [row["engine"] for row in found["serving"]] == ASKED
    assert {"loads", "kept", "change", "evidence", "where", "version"} <= found["serving"][0].keys()


def test_a_type_without_rules_is_said(tmp_path: Path, command: Command) -> None:
    source = edit_config(save_tiny(tmp_path / "in"), model_type="mamba")
    outcome = command("inspect", source, "--serving")
    assert outcome.code == 2
    assert "no rules for 'mamba', which no conversion makes; there are rules for" in outcome.err


def test_gpt_bigcode_with_the_gelu_that_mlx_lm_has_needs_no_warning() -> None:
    config = {"model_type": "gpt_bigcode"}
    warned, silent = (
        next(rule for rule in verdicts(config | {"activation_function": name}) if rule.engine == "mlx-lm")
        for name in ("gelu_new", "gelu")
    )
    assert "GELU" in warned.change
    assert not silent.change


def test_forms_are_those_that_rules_speak_of() -> None:
    assert {target.form for target in targets()} == {SharedHeads, LatentCache}
