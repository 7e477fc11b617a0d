"""The rules of `inspect --serving`: complete, well founded, and shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Command, edit_config, save_tiny
from families import CAUSAL, LATENTS, serves
from test_engines import CASES, ENGINES, GELU

from convert_attn import convert, modeling
from convert_attn.convert import archs
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, LatentCache, SharedHeads
from convert_attn.convert.discovery import discover
from convert_attn.convert.inspection.serving import engines, verdicts
from convert_attn.convert.serving_rules import ENGINES as RULED
from convert_attn.convert.serving_rules import RULES, ServingRule
from convert_attn.convert.serving_rules.results import LARGER, NATIVE, OWN, SINKS, TRIED_OWN
from convert_attn.convert.targets import targets

NOTES = [note for engine in RULED for note in engine.notes]
ROOT = Path(__file__).parents[1]
ASKED = ["transformers", "vLLM", "SGLang", "llama.cpp", "CTranslate2", "mlx-lm", "TGI"]
NAMES = {"ctranslate2": "CTranslate2", "mlx_lm": "mlx-lm", "llama_cpp": "llama.cpp"}
CONFIG: dict[str, Any] = {
    "head_dim": 64,
    "num_attention_heads": 8,
    "hidden_size": 512,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "attention_bias": True,
}


def result_types() -> set[str]:
    """Every model type that a conversion can end in."""
    known = targets()
    native = {name for name, arch in architectures().items() if arch.config_kv_heads is not None}
    own = {target.becomes for target in known if target.becomes}
    return {str(name) for name in (native | own)}


RESULTS = sorted(result_types() | LARGER)


@pytest.mark.parametrize("model_type", RESULTS)
def test_every_engine_has_a_rule_for_every_result(model_type: str) -> None:
    assert [rule.engine for rule in verdicts(CONFIG | {"model_type": model_type})] == ASKED == engines()


def test_rules_speak_of_what_conversions_end_in() -> None:
    known = {arch.model_type for arch in discover(archs.__name__, "ARCHITECTURE", Architecture)}
    known |= LARGER | {target.becomes for target in targets() if target.becomes}
    for part in (*RULES, *NOTES):
        assert not part.types - known


def test_rules_say_what_to_do_where_it_does_not_load_or_the_cache_grows() -> None:
    for rule in RULES:
        assert (rule.kept is None) == (rule.loads in ("no", "not known"))
        assert rule.change or rule.kept
        assert not (rule.loads == "native class" and rule.types & OWN)
        assert not (rule.loads == "custom code" and rule.types - OWN)
        assert rule.where


def test_what_was_tried_is_in_this_repository() -> None:
    for rule in (*RULES, *NOTES):
        assert (ROOT / rule.where).is_file() == (rule.evidence == "tried"), rule.where


def test_what_was_read_is_a_line_that_will_stay() -> None:
    """Of a release or a commit, not of a branch that moves."""
    for rule in (*RULES, *NOTES):
        if rule.evidence == "source":
            assert re.fullmatch(r"https://github\.com/[\w-]+/[\w.-]+/blob/(v[\d.]+|[0-9a-f]{40})/\S+#L\d+", rule.where)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_tried_in_engines_is_what_their_tests_try(engine: str) -> None:
    tried = {case.result for name, case in CASES.items() if engine in case.engines}
    if engine != "ctranslate2":
        tried |= {CASES[name].result for name in GELU}  # in tests of their own
    said = [rule for rule in RULES if rule.engine == NAMES[engine] and rule.evidence == "tried"]
    assert {name for rule in said if rule.loads == "native class" for name in rule.types} == tried
    refused = {name for rule in said if rule.loads == "no" for name in rule.types}
    assert refused >= TRIED_OWN


def test_versions_are_those_that_are_pinned() -> None:
    pins = (ROOT / "pyproject.toml").read_text()
    for rule in RULES:
        if rule.where == "tests/test_engines.py":
            package, version = rule.engine.lower(), rule.version
            if rule.engine == "llama.cpp":  # a commit, and the package that has it
                package, version = rule.version.split(", of ")[1].split()
            assert f"{package}=={version}" in pins


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


def test_addresses_are_shown_whole(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    source = save_tiny(tmp_path / "in", "llama")
    shown = command("inspect", source, "--serving").out
    assert "…" not in shown
    column = "".join(line.split("│")[5].strip() for line in shown.splitlines() if line.count("│") > 3)
    assert next(rule.where for rule in verdicts({"model_type": "llama"}) if rule.engine == "vLLM") in column


def test_a_type_without_rules_is_said(tmp_path: Path, command: Command) -> None:
    source = edit_config(save_tiny(tmp_path / "in"), model_type="mamba")
    outcome = command("inspect", source, "--serving")
    assert outcome.code == 2
    assert "no rules for 'mamba', which no conversion makes; there are rules for" in outcome.err


@pytest.mark.parametrize(
    ("kept", "config"),
    [(True, {}), (False, {"multi_query": False}), (False, {"new_decoder_architecture": True, "num_kv_heads": 1})],
)
def test_a_class_that_caches_every_head_is_told_from_the_same_with_one(kept: bool, config: dict[str, Any]) -> None:
    assert verdict("transformers", model_type="falcon", **config).kept is kept


def verdict(engine: str, **config: Any) -> ServingRule:
    """The rule of one engine."""
    return next(rule for rule in verdicts(CONFIG | config) if rule.engine == engine)


@pytest.mark.parametrize(("engine", "right"), [("mlx-lm", "gelu"), ("TGI", "gelu_pytorch_tanh")])
def test_gpt_bigcode_with_the_gelu_that_an_engine_has_needs_no_warning(engine: str, right: str) -> None:
    assert "GELU" in verdict(engine, model_type="gpt_bigcode", activation_function="gelu_new").change
    assert not verdict(engine, model_type="gpt_bigcode", activation_function=right).change


@pytest.mark.parametrize("model_type", sorted(OWN & {*CAUSAL, *LATENTS}))
def test_engines_that_put_an_attention_of_theirs_in_its_place_run_what_lets_them(model_type: str) -> None:
    latent = model_type in LATENTS or model_type.endswith("_mla")
    loads = {rule.engine: (rule.loads, rule.kept) for rule in verdicts(CONFIG | {"model_type": model_type})}
    assert loads["vLLM"] == (("custom code", not latent) if serves(model_type) else ("no", None))
    assert loads["SGLang"] in (loads["vLLM"], ("no", None))


@pytest.mark.parametrize("model_type", sorted(name for name, family in modeling.FAMILIES.items() if family.two_stacks))
def test_no_engine_but_transformers_runs_an_encoder_decoder_of_ours(model_type: str) -> None:
    assert [rule.engine for rule in verdicts({"model_type": model_type}) if rule.loads != "no"] == ["transformers"]


@pytest.mark.parametrize("model_type", sorted(name for name, family in modeling.FAMILIES.items() if family.encoder))
def test_encoders_without_a_head_run_in_vllm(model_type: str) -> None:
    bare = verdict("vLLM", model_type=model_type, architectures=["SomeModel"])
    assert (bare.loads, bare.kept) == ("custom code", True)
    assert verdict("vLLM", model_type=model_type, architectures=["SomeForMaskedLM"]).loads == "not known"


def test_falcon_is_kept_small_where_the_engine_has_a_class_of_its_own() -> None:
    grouped = {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2}
    assert verdict("transformers", **grouped).kept is False
    assert verdict("vLLM", **grouped).kept is True
    assert verdict("llama.cpp", **grouped).kept is True


@pytest.mark.parametrize(
    ("engine", "model_type", "key"),
    [
        ("vLLM", "stablelm", "qk_layernorm"),
        ("SGLang", "stablelm", "qk_layernorm"),
        ("vLLM", "olmoe", "clip_qkv"),
        ("CTranslate2", "gemma2", "attn_logit_softcapping"),
        ("SGLang", "vaultgemma", "attn_logit_softcapping"),
        ("SGLang", "falcon_gqa", "alibi"),
        ("vLLM", "falcon_gqa", "alibi"),
    ],
)
def test_what_a_config_asks_for_and_an_engine_has_not_got(engine: str, model_type: str, key: str) -> None:
    if model_type not in NATIVE | OWN:
        pytest.skip("its class in the installed transformers is not right")
    assert verdict(engine, model_type=model_type).loads not in ("no", "not known")
    assert verdict(engine, model_type=model_type, **{key: 1}).loads == "no"


@pytest.mark.parametrize("engine", ["vLLM", "SGLang"])
def test_classes_of_which_all_layers_are_alike(engine: str) -> None:
    rule = verdict(engine, model_type="opt_gqa", **{HEADS_BY_LAYER: [4, 2]})
    assert (rule.loads, "one number of K/V heads" in rule.change) == ("no", True)
    assert verdict(engine, model_type="opt_gqa", **{HEADS_BY_LAYER: [2, 2]}).kept is True


@pytest.mark.parametrize("engine", ["vLLM", "SGLang"])
def test_what_a_transformers_backend_leaves_out_is_said(engine: str) -> None:
    def texts(**config: Any) -> str:
        return " ".join(note.text for note in verdict(engine, **config).notes)

    assert "a temperature 8.0 times as high" in texts(model_type="granite_mla", logits_scaling=8.0)
    assert texts(model_type="granite_mla", logits_scaling=1.0) == texts(model_type="granite", logits_scaling=8.0) == ""
    window = {"model_type": "starcoder2_mla", "sliding_window": 4096}
    assert ("farther back than 4096" in texts(**window)) == (engine == "SGLang")
    assert texts(**window, layer_types=["sliding_attention"]) == ""


@pytest.mark.parametrize("engine", ["vLLM", "llama.cpp"])
def test_names_that_an_engine_looks_for(engine: str) -> None:
    given = {"model_type": "phimoe", "num_attention_heads": 8, "hidden_size": 512}
    named, other = (verdict(engine, **given, architectures=[f"{name}ForCausalLM"]) for name in ("PhiMoE", "Phimoe"))
    assert (named.loads, named.kept) == ("native class", True)
    assert other.change != named.change


@pytest.mark.parametrize(("engine", "model_type"), [("SGLang", "olmo"), ("vLLM", "phi"), ("llama.cpp", "phi")])
def test_classes_of_engines_with_a_key_for_every_query_head(engine: str, model_type: str) -> None:
    rule = verdict(engine, model_type=model_type)
    assert "gives every query head a key and a value" in rule.change
    assert (rule.loads == "no") == ("--model-impl transformers" not in rule.change)


def test_a_larger_model_depends_on_the_language_model_inside() -> None:
    for inside, loads in (("llama", "native class"), ("stablelm", "not known")):
        config = {"model_type": "llava", "text_config": {"model_type": inside}}
        assert {verdict(engine, **config).loads for engine in ("vLLM", "SGLang", "llama.cpp", "mlx-lm")} == {loads}


def test_sinks_are_not_said_to_be_kept_where_a_backend_drops_them() -> None:
    for model_type in SINKS:
        assert verdict("SGLang", model_type=model_type).loads in ("native class", "no")
        assert (
            verdict("SGLang", model_type=model_type).loads == "no"
            or "backend" not in verdict("SGLang", model_type=model_type).change
        )


@pytest.mark.parametrize(
    ("engine", "model_type"), [("vLLM", "qwen2"), ("TGI", "llama"), ("SGLang", "mixtral"), ("mlx-lm", "granite")]
)
def test_engines_that_do_not_look_for_the_size_of_a_head(engine: str, model_type: str) -> None:
    assert verdict(engine, model_type=model_type).loads == "native class"
    assert verdict(engine, model_type=model_type, head_dim=128).loads == "no"
    without = {key: value for key, value in CONFIG.items() if key != "head_dim"} | {"model_type": model_type}
    assert {rule.engine: rule.loads for rule in verdicts(without)}[engine] == "native class"


def test_forms_are_those_that_rules_speak_of() -> None:
    assert {target.form for target in targets()} == {SharedHeads, LatentCache}


def filled_texts(config: dict[str, Any]) -> list[str]:
    return [text for rule in verdicts(config) for text in (rule.change, *(note.text for note in rule.notes))]


@pytest.mark.parametrize("model_type", sorted(result_types()))
@pytest.mark.parametrize("sizes", [{}, {"kv_lora_rank": 400}, {"qk_nope_head_dim": 36, "v_head_dim": 36}])
def test_what_is_said_of_sizes_names_them(model_type: str, sizes: dict[str, Any]) -> None:
    for head_dim in (36, 64):
        for text in filled_texts(CONFIG | {"model_type": model_type, "head_dim": head_dim} | sizes):
            assert "{" not in text
            assert "unknown" not in text
    filled_texts({"model_type": model_type})  # a file that says little is no error


@pytest.mark.parametrize(
    ("sizes", "loads", "says"),
    [
        ({}, "native class", "--model-impl transformers"),
        ({"kv_lora_rank": 256}, "native class", "on a GPU only"),
        ({"qk_nope_head_dim": 64, "v_head_dim": 64}, "native class", "on a CPU only"),
        ({"kv_lora_rank": 513}, "no", "a latent of 513 with a rotary key of 64 and heads of 128"),
        ({"qk_rope_head_dim": 32}, "no", "a latent of 512 with a rotary key of 32 and heads of 128"),
        ({"kv_lora_rank": 256, "qk_nope_head_dim": 64, "v_head_dim": 64}, "no", "256 with a rotary key of 64"),
    ],
)
def test_vllm_keeps_a_latent_of_the_sizes_that_its_kernels_take(sizes: dict[str, Any], loads: str, says: str) -> None:
    rule = verdict("vLLM", model_type="deepseek_v3", **sizes)
    assert (rule.loads, rule.kept) == (loads, None if loads == "no" else True)
    assert says in rule.change
    if loads == "no":
        assert "take a latent of 512 or 256 with a rotary key of 64 and heads of 128" in rule.change


@pytest.mark.parametrize(
    ("engine", "fits", "odd"), [("vLLM", 96, 100), ("vLLM", 256, 264), ("TGI", 128, 96), ("mlx-lm", 96, 80)]
)
def test_heads_that_the_best_kernels_do_not_take_are_said(engine: str, fits: int, odd: int) -> None:
    def notes(size: int) -> list[str]:
        config = {"head_dim": size, "num_attention_heads": 8, "hidden_size": 8 * size}
        return [note.text for note in verdict(engine, model_type="llama", **config).notes]

    assert notes(fits) == []
    (text,) = notes(odd)
    assert f"heads of {odd}" in text or f"here {odd}" in text


def test_a_deepseek_without_biases_is_not_said_to_stop_at_them() -> None:
    found = {rule.engine: rule for rule in verdicts(CONFIG | {"model_type": "deepseek_v3", "attention_bias": False})}
    assert not any("bias" in rule.change for rule in found.values())
