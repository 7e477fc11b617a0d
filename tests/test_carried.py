"""What a config.json says of a model survives a change of class; what nobody read does not come alive by it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, besides_text, config_of, edit_config, save_tiny
from tiny import HEADS, KINDS, SIZES, load, logits_of, tiny_geometry, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.generation.configuration_utils import METADATA_FIELDS

from convert_attn import convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import LatentCache, SharedHeads
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.targets import fitting

_SIZES = Geometry(hidden_size=64, num_layers=2, num_heads=HEADS, num_kv_heads=HEADS, head_dim=8, context=64)
_GENERIC = {field.name for field in fields(PreTrainedConfig)} - {"architectures", "transformers_version"}
# settings that every config may have, beside their defaults, and some that no class knows
GENERIC: dict[str, Any] = {
    "problem_type": "multi_label_classification",
    "output_hidden_states": True,
    "chunk_size_feed_forward": 3,
    "torch_dtype": "bfloat16",
}
UNKNOWN = {
    "finetuning_task": "cola",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "my_own_note": [1, {"a": None}],
}
# legacy: what generation reads from config.json where there is no generation_config.json
GENERATION = {
    "do_sample": True,
    "temperature": 0.7,
    "max_length": 33,
    "repetition_penalty": 1.3,
    "bad_words_ids": [[5]],
}


def _homes() -> list[tuple[str, str, str]]:
    """(source, --to, --layout) for every class that can hold one family of each kind, or one that has tests here.

    Once for a class: what a config says besides does not hang on how many heads are left.
    """
    found, reached = [], set()
    for name in sorted({*KINDS, "gemma", "gpt2", "mistral"}):
        arch = architectures()[name]
        for to, form in (
            ("gqa", SharedHeads.of(2, 2)),
            ("mqa", SharedHeads.of(1, 2)),
            ("mla", LatentCache.of(16, 8, 2)),
        ):
            if to == "mla" and arch.position != "rope":
                form = LatentCache.of(16, 0, 2)
            for target in fitting(arch, _SIZES, form):
                if (name, target.name) not in reached:
                    found.append((name, to, target.layout))
                    reached.add((name, target.name))
    return found


def _convert(source: Path, output: Path, to: str, layout: str = "auto", **options: Any) -> Any:
    sizes: dict[str, Any] = {"gqa": {"groups": 2}, "mqa": {}, "mla": {"rank": 16}}[to]
    return convert(source, to=to, layout=layout, output=output, **sizes, **options)


def _edit(folder: Path, **values: Any) -> Path:
    """Set keys of config.json, null too."""
    (folder / "config.json").write_text(json.dumps(config_of(folder) | values))
    return folder


HOMES = _homes()


@pytest.fixture(params=HOMES, ids="-".join)
def home(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """Every change of class that there is."""
    return request.param  # type: ignore[no-any-return]


LABELS: list[dict[str, Any]] = [
    {"num_labels": 1},
    {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}},
]
TOKENS: list[dict[str, Any]] = [{}, {"bos_token_id": None, "eos_token_id": [3, 4], "pad_token_id": None}]


def _its_turn(home: tuple[str, str, str], choice: Any, choices: list[Any], slow: bool) -> None:
    """Skip all choices but one, which goes round; none with --slow."""
    if not slow and choices[HOMES.index(home) % len(choices)] != choice:
        pytest.skip("another of these for this family and target: --slow")


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_generic_settings_survive(
    home: tuple[str, str, str], labels: dict[str, Any], tmp_path: Path, slow: bool
) -> None:
    _its_turn(home, labels, LABELS, slow)
    name, to, layout = home
    source = _edit(save_tiny(tmp_path / "source", name), dtype=None, **GENERIC, **UNKNOWN, **labels)
    result = _convert(source, tmp_path / "out", to, layout)
    before, after = (typed_config(config_of(folder), "tiny") for folder in (source, tmp_path / "out"))
    for key in (*_GENERIC, "num_labels", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"):
        assert getattr(after, key) == getattr(before, key), key
    raw = config_of(tmp_path / "out")
    assert {key: raw.get(key) for key in UNKNOWN} == UNKNOWN
    assert ("id2label" in raw) == ("id2label" in labels)
    assert not besides_text(result.warnings)


@pytest.mark.parametrize("tokens", TOKENS, ids=str)
def test_what_a_class_fills_in_is_the_sources(
    home: tuple[str, str, str], tokens: dict[str, Any], tmp_path: Path, slow: bool
) -> None:
    """Keys that config.json leaves out have the default of the source's class, also where the result's has another."""
    _its_turn(home, tokens, TOKENS, slow)
    name, to, layout = home
    pad = None if tokens else getattr(AutoConfig.for_model(name), "pad_token_id", None)  # its row has to be there
    source = save_tiny(tmp_path / "source", name, vocab_size=max(97, (pad or 0) + 1))
    told = {"bos_token_id", "eos_token_id", "pad_token_id", "activation_function", "hidden_act", "use_cache"}
    told |= {"initializer_range", "attention_dropout", "resid_pdrop", "embd_pdrop"}
    raw = {key: value for key, value in config_of(source).items() if key not in told} | tokens
    (source / "config.json").write_text(json.dumps(raw))
    (source / "generation_config.json").unlink()
    _convert(source, tmp_path / "out", to, layout)
    before, after = (typed_config(config_of(folder), "tiny") for folder in (source, tmp_path / "out"))
    for key in sorted(told):
        if hasattr(before, key) and hasattr(after, key):
            assert getattr(after, key) == getattr(before, key), key
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).generation_config for folder in (source, tmp_path / "out")
    )
    assert _plain(after) == _plain(before)


def _plain(settings: Any) -> dict[str, Any]:
    return {key: value for key, value in settings.to_dict().items() if key not in METADATA_FIELDS}


def test_generation_is_set_as_it_was(home: tuple[str, str, str], tmp_path: Path) -> None:
    name, to, layout = home
    source = _edit(save_tiny(tmp_path / "source", name), **GENERATION)
    (source / "generation_config.json").unlink()
    _convert(source, tmp_path / "out", to, layout)
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).generation_config for folder in (source, tmp_path / "out")
    )
    assert {key: getattr(before, key) for key in GENERATION} == GENERATION
    assert _plain(after) == _plain(before)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("labels", [1, 3])
def test_a_head_of_labels_is_as_wide_as_it_was(name: str, labels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_model(name).config
    config.num_labels, config.pad_token_id, config.problem_type = labels, 0, "regression"
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "source")
    edit_config(tmp_path / "source", id2label=None, label2id=None, num_labels=labels)
    for to in ("gqa", "mla"):
        _convert(tmp_path / "source", tmp_path / to, to)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / to)
        assert loaded.num_labels == labels
        assert loaded.config.problem_type == "regression"


def test_a_key_that_only_the_new_class_reads_is_left_out_and_said(tmp_path: Path, command: Command) -> None:
    stray = {"mlp_bias": True, "latent_norm": True, "norm_gain_offset": 1.0, "sliding_window": 5, "q_bias": True}
    source = edit_config(save_tiny(tmp_path / "source", "llama"), mlp_bias=None)
    plain = load(source)
    for name, folder in (("mistral", source), ("llama", source)):
        keys = stray if name == "mistral" else {key: stray[key] for key in stray if key != "mlp_bias"}
        keys = keys if name == "llama" else {key: keys[key] for key in keys if key != "sliding_window"}
        edit_config(folder, model_type=name, **dict.fromkeys(stray))
        edit_config(folder, architectures=[f"{name.capitalize()}ForCausalLM"], **keys)
        out = tmp_path / name
        outcome = command(
            "convert", folder, "--to", "mla", "--rank", "64", "--rope-dim", "64", "--output", out, "--json"
        )
        said = json.loads(outcome.out)["warnings"]
        for key, value in keys.items():
            config_class = f"{name.capitalize()}Config"
            assert any(f"config.json has {key} {value!r}, which {config_class} does not read" in line for line in said)
        torch.testing.assert_close(logits_of(load(out)), logits_of(plain), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "stray", [{"sliding_window": 5}, {"attention_chunk_size": 4}, {"layer_types": ["sliding_attention"] * 2}], ids=str
)
@pytest.mark.parametrize("to", ["gqa", "mla"])
def test_a_cache_forgets_nothing_that_attention_sees(stray: dict[str, Any], to: str, tmp_path: Path) -> None:
    """transformers' caches read a window from any config; a Llama's attention reads none."""
    stray = stray | ({"sliding_window": 5} if "layer_types" in stray else {})
    source = edit_config(save_tiny(tmp_path / "source", "llama"), **stray)
    result = _convert(source, tmp_path / "out", to)
    for key in stray:
        assert config_of(tmp_path / "out").get(key) is None
        assert any(f"config.json has {key}" in warning for warning in result.warnings)
    model = load(tmp_path / "out")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        generated = model.generate(ids, max_new_tokens=6, do_sample=False, min_new_tokens=6)
        plain = model.generate(ids, max_new_tokens=6, do_sample=False, min_new_tokens=6, use_cache=False)
    assert torch.equal(generated, plain)
    assert tiny_geometry(load(source))[1].windows == (None, None)
    assert SIZES["max_position_embeddings"] >= 26
