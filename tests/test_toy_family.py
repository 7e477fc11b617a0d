"""A family added by one file of facts converts to every target that fits: nothing else had to know of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import assert_same_logits

from convert_attn import convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.block_facts import Alibi, alibi_slopes
from convert_attn.convert.archs.cache_form import SharedHeads
from convert_attn.convert.archs.geometry import geometry
from convert_attn.convert.targets import fitting
from convert_attn.convert.verification.process import ISOLATED

HERE = Path(__file__).parent / "toy"
FACTS = '''"""The toy family."""

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.packings import FusedGroups

ARCHITECTURE = Architecture(
    model_type="toy",
    base="model.",
    block="layers.{layer}.",
    qkv=FusedGroups("self_attn.query_key_value"),
    output="self_attn.dense",
    norm=None,
    position="alibi",
)
'''
HEADS = 8


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Any]]:
    """A checkpoint of the family, and the model; the class is known here and in processes that are started."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=":")
    ISOLATED.stop()  # one that runs already has not heard of it
    family = importlib.import_module("toy_family")
    place = tmp_path / "archs"
    place.mkdir()
    (place / "toy.py").write_text(FACTS)
    package = importlib.import_module("convert_attn.convert.archs")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(place)])
    monkeypatch.delitem(sys.modules, "convert_attn.convert.archs.toy", raising=False)
    torch.manual_seed(0)
    config = family.ToyConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=128,
        max_position_embeddings=64,
        head_dim=8,
    )
    model = family.ToyForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "in")
    yield tmp_path, model
    ISOLATED.stop()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(40)[None]).logits
    return found


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def test_what_fits_is_known_from_its_facts(toy: tuple[Path, Any]) -> None:
    _, model = toy
    arch = architectures()["toy"]
    sizes = geometry(arch, model.config.to_dict(), "toy")
    assert sizes.position == Alibi(alibi_slopes(HEADS))
    assert sizes.block(1).fixed_order
    assert not sizes.block(1).turns
    assert [target.name for target in fitting(arch, sizes, SharedHeads.of(2, 2))] == ["same class"]


@pytest.mark.parametrize("groups", [HEADS, 4, 2, 1])
def test_it_converts_to_every_target_that_fits(groups: int, toy: tuple[Path, Any]) -> None:
    place, model = toy
    made = convert(place / "in", to="gqa", groups=groups, output=place / "out")
    found = loaded(made.output)
    assert type(found).__name__ == "ToyForCausalLM"
    assert found.config.num_key_value_heads == groups
    if groups == HEADS:
        assert torch.equal(logits(found), logits(model))


def test_heads_that_are_equal_in_pairs_are_found_where_they_stand(toy: tuple[Path, Any]) -> None:
    """Neighbours: heads with slopes cannot change places."""
    place, model = toy
    for layer in model.model.layers:
        weight = layer.self_attn.query_key_value.weight.data.unflatten(0, (HEADS, 3, 8))
        bias = layer.self_attn.query_key_value.bias.data.unflatten(0, (HEADS, 3, 8))
        for part in (weight, bias):
            part[1::2, 1:] = part[::2, 1:]
    model.save_pretrained(place / "in")
    made = convert(place / "in", to="gqa", groups=HEADS // 2, output=place / "out")
    assert_same_logits(logits(loaded(made.output)), logits(model))


def test_on_text_the_fit_gets_better(toy: tuple[Path, Any], tmp_path: Path) -> None:
    import numpy as np

    place, model = toy
    windows = torch.randint(0, 128, (96, 48), generator=torch.Generator().manual_seed(1))
    np.save(place / "fit.npy", windows.numpy())
    with torch.no_grad():
        wanted = model(windows[:8]).logits.log_softmax(-1)
        lost = {}
        for name, text in {"weights": None, "text": str(place / "fit.npy")}.items():
            made = convert(place / "in", to="gqa", groups=2, output=place / name, measure=False, calibration=text)
            ours = loaded(made.output)(windows[:8]).logits.log_softmax(-1)
            lost[name] = float((wanted.exp() * (wanted - ours)).sum(-1).mean())
    assert lost["text"] < lost["weights"]
