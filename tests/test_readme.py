"""README's examples do what it says: each is written as the file that it names, and used."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_tiny
from tiny import assert_same_logits
from transformers import AutoModelForCausalLM, Jais2Config, Jais2ForCausalLM

from convert_attn import convert
from convert_attn.convert.methods import methods

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"`convert/(\w+/\w+\.py)`:[^`]*?```python\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files, where discovery finds them; a folder to work in."""
    assert sorted(EXAMPLES) == ["archs/jais2.py", "methods/last.py", "targets/mistral_twin.py"]
    for name, code in EXAMPLES.items():
        file = tmp_path / "more" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        package = importlib.import_module(f"convert_attn.convert.{file.parent.name}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
    return tmp_path


def logits(model: Any) -> torch.Tensor:
    """Of a few tokens."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(24)[None]).logits
    return found


def test_lines_are_short_enough_to_read() -> None:
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL).splitlines()
    assert not [line for line in prose if len(line) > 120 and not line.startswith("|")]


def test_a_method_is_one_file(examples: Path) -> None:
    assert "last" in methods()
    source = save_tiny(examples / "in", "llama")
    made = convert(source, to="gqa", groups=2, method="last", calibration=None, output=examples / "out")
    ours = AutoModelForCausalLM.from_pretrained(made.output).model.layers[0].self_attn.k_proj.weight
    theirs = AutoModelForCausalLM.from_pretrained(source).model.layers[0].self_attn.k_proj.weight
    heads, size = AutoModelForCausalLM.from_pretrained(source).config.num_attention_heads, ours.shape[0] // 2
    kept = theirs.unflatten(0, (heads, size)).unflatten(0, (2, -1))[:, -1]
    assert torch.equal(ours, kept.flatten(0, 1))


def test_a_family_is_one_file(examples: Path) -> None:
    torch.manual_seed(0)
    config = Jais2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=128,
        max_position_embeddings=64,
    )
    model = Jais2ForCausalLM(config).eval()
    model.save_pretrained(examples / "in")
    kept = convert(examples / "in", to="gqa", groups=8, output=examples / "same")
    assert_same_logits(logits(AutoModelForCausalLM.from_pretrained(kept.output)), logits(model))
    made = convert(examples / "in", to="mqa", output=examples / "out")
    assert AutoModelForCausalLM.from_pretrained(made.output).config.num_key_value_heads == 1


def test_a_target_is_one_file(examples: Path) -> None:
    source = save_tiny(examples / "in", "llama")
    made = convert(source, to="gqa", groups=4, calibration=None, output=examples / "out")
    found = AutoModelForCausalLM.from_pretrained(made.output)
    assert type(found).__name__ == "MistralForCausalLM"
    (examples / "more" / "targets" / "mistral_twin.py").unlink()
    importlib.invalidate_caches()
    same = convert(source, to="gqa", groups=4, calibration=None, output=examples / "plain")
    expected = AutoModelForCausalLM.from_pretrained(same.output)
    assert type(expected).__name__ == "LlamaForCausalLM"
    assert_same_logits(logits(found), logits(expected))
