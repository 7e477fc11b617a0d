"""What transformers derives from a model_type stays what it was: tokenizer class, special tokens, ids, template."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import besides_text, json_of, save_tiny
from test_carried import _convert, _homes
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from convert_attn.convert.publish.derived import tokenizer_differences
from convert_attn.convert.samples import sample_path
from convert_attn.convert.verification.folder import verify

TEMPLATE = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
TEXT = "def  f(x):\n\treturn Éa + 1024  # <|endoftext|> 日本"
HOMES = _homes()


def _files(folder: Path, kind: str) -> None:
    """A tokenizer's files that leave its class to the model_type, or name one of another family."""
    whole = json_of(sample_path("gpt2") / "tokenizer.json")
    settings: dict[str, Any] | None = {"model_max_length": 1024, "chat_template": TEMPLATE}
    if kind == "prefix space":  # the class builds it in, tokenizer.json does not have it
        settings |= {"add_prefix_space": True}
    if kind == "vocabulary":
        (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
        merges = (" ".join(pair) if isinstance(pair, list) else pair for pair in whole["model"]["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    else:
        shutil.copy(sample_path("gpt2") / "tokenizer.json", folder)
    if kind == "nothing else":
        settings = None
    elif kind.endswith(("Tokenizer", "Fast")):
        settings = {"model_max_length": 1024, "tokenizer_class": kind, "eos_token": "<|endoftext|>"}
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _read(folder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT)["input_ids"]
    return {
        "class": type(tokenizer).__name__,
        "special": tokenizer.special_tokens_map,
        "ids": ids,
        "text": tokenizer.decode(ids),
        "template": tokenizer.chat_template,
        "longest": tokenizer.model_max_length,
        "sides": (tokenizer.padding_side, tokenizer.truncation_side),
        "processor": type(AutoProcessor.from_pretrained(folder)).__name__,
    }


def _same(source: Path, result: Path) -> None:
    before, after = _read(source), _read(result)
    given = TOKENIZER_MAPPING_NAMES.get(json_of(result / "config.json")["model_type"])
    if after["class"] == given:  # whatever a folder of this type names
        before["class"] = before["processor"] = given
    assert after == before


KINDS = {name: ["settings"] for name, _, _ in HOMES}
# their own class wants tokens that this vocabulary lacks, or a package that is not installed
for other in ("gemma", "gemma2", "gemma3_text", "biogpt"):
    KINDS[other] = ["GPT2Tokenizer"]
KINDS["gpt2"] += ["nothing else", "vocabulary", "prefix space", "GPT2Tokenizer"]
KINDS["mistral"] += ["nothing else", "LlamaTokenizerFast", "GPT2Tokenizer"]


@pytest.mark.parametrize(("home", "kind"), [(home, kind) for home in HOMES for kind in KINDS[home[0]]], ids=str)
def test_the_tokenizer_is_the_sources(home: tuple[str, str, str], kind: str, tmp_path: Path) -> None:
    name, to, layout = home
    source, out = save_tiny(tmp_path / "source", name), tmp_path / "out"
    _files(source, kind)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    result = _convert(source, out, to, layout)
    assert files == {path.name: path.read_bytes() for path in source.iterdir()}
    _same(source, out)
    assert not besides_text(result.warnings)
    assert tokenizer_differences(source, str(source), out) == ()
    settings = json_of(source / "tokenizer_config.json") if kind != "nothing else" else {}
    if result.plan.result_type == name:
        assert (out / "tokenizer_config.json").exists() == bool(settings)
        assert not settings or json_of(out / "tokenizer_config.json") == settings
    else:
        made = json_of(out / "tokenizer_config.json")
        assert made["tokenizer_class"]
        kept = {key: value for key, value in settings.items() if key != "tokenizer_class"}
        assert {key: made[key] for key in kept} == kept
        if result.plan.target.layout == "custom" and settings and "tokenizer_class" not in settings:
            text = (out / "tokenizer_config.json").read_text()
            assert text.replace(f'"tokenizer_class": "{made["tokenizer_class"]}", ', "") == json.dumps(settings)


@pytest.mark.parametrize("home", HOMES, ids="-".join)
def test_no_tokenizer_is_made_of_nothing(home: tuple[str, str, str], tmp_path: Path) -> None:
    name, to, layout = home
    source, out = save_tiny(tmp_path / "source", name), tmp_path / "out"
    _convert(source, out, to, layout)
    made = {path.name for path in out.iterdir()}
    assert not made & {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"}


@pytest.mark.parametrize("home", HOMES, ids="-".join)
def test_settings_without_a_vocabulary_are_no_tokenizer(home: tuple[str, str, str], tmp_path: Path) -> None:
    name, to, layout = home
    source, out = save_tiny(tmp_path / "source", name), tmp_path / "out"
    (source / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    _convert(source, out, to, layout)
    assert verify(out).transformers
    assert (out / "tokenizer_config.json").read_text() == '{"model_max_length": 64}'


def test_without_this_package_it_is_the_sources_too(tmp_path: Path) -> None:
    """In a process that cannot import convert_attn, with the checkpoint's own code."""
    folders = []
    for name, to, layout in (("gpt2", "gqa", "auto"), ("gpt2", "mla", "auto"), ("gpt2", "mqa", "native")):
        source, out = tmp_path / f"{name}-{to}", tmp_path / f"{name}-{to}-out"
        save_tiny(source, name)
        _files(source, "vocabulary")
        _convert(source, out, to, layout)
        folders.append((str(source), str(out)))
    script = f"""
import json, sys
sys.modules["convert_attn"] = None
from transformers import AutoTokenizer
for pair in {folders!r}:
    before, after = (AutoTokenizer.from_pretrained(folder, trust_remote_code=True) for folder in pair)
    assert after.special_tokens_map == before.special_tokens_map, (after, before)
    assert after({TEXT!r})["input_ids"] == before({TEXT!r})["input_ids"]
    assert after.chat_template == before.chat_template
    print(type(before).__name__, type(after).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["GPT2Tokenizer"] * 5 + [TOKENIZER_MAPPING_NAMES["gpt_bigcode"]]
