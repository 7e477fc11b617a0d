"""Every family x what it can become: the table that is printed, and in README, is what conversions do."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, tensors_of
from tiny import CONVERTIBLE, HEADS, assert_same_logits, load, logits_of, tiny_geometry, tiny_model
from tiny import SIZES as SIZES_OF_TINY
from transformers import AutoModel

from convert_attn import convert
from convert_attn.convert import archs
from convert_attn.convert.archs import UNSUPPORTED, architectures
from convert_attn.convert.classes.auto_classes import writes_alone
from convert_attn.convert.conversion.api import plan
from convert_attn.convert.discovery import discover
from convert_attn.convert.errors import UsageError
from convert_attn.convert.inspection.families import COLUMNS, Home, families, markdown, not_converted
from convert_attn.eval.measures.decoding import cache_of, with_cache

SIZES: dict[str, dict[str, Any]] = {"gqa": {"groups": 2}, "mqa": {}, "mla": {"cache_ratio": 0.5}}
QUICK: dict[str, Any] = {"calibration": None, "measure": False}
NEW = 6  # tokens that are generated


@cache
def cells() -> dict[str, Any]:
    return dict(families())


# what is only inside larger models is held in test_larger
ALONE = [name for name in cells() if writes_alone(name)]
HELD = [(name, to, home) for name in ALONE for to in COLUMNS for home in cells()[name][to].homes]
REFUSED = [(name, to) for name in ALONE for to in COLUMNS if cells()[name][to].refused]


def test_every_cell_is_held_or_refused() -> None:
    assert all(bool(cell.homes) != bool(cell.refused) for row in cells().values() for cell in row.values())


@pytest.mark.parametrize("name", ALONE)
def test_as_many_groups_as_heads_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    if not cells()[name]["gqa"].homes:
        pytest.skip("no class with shared heads")
    tiny_model(name).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=HEADS, output=tmp_path / "out", **QUICK)
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    if before.keys() != after.keys():  # the source stores joined what its class and ours have apart
        before, after = (load(tmp_path / folder).state_dict() for folder in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[stored]) for stored, tensor in before.items())


def generated(model: Any, ids: torch.Tensor, mask: torch.Tensor, *, cached: bool = True) -> torch.Tensor:
    """Greedy tokens [batch, NEW] behind prompts [batch, length]."""
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "use_cache": cached, "pad_token_id": 0}
    found: torch.Tensor = model.generate(ids, attention_mask=mask, **options)
    return found[:, ids.shape[1] :]


@pytest.mark.parametrize(("name", "to", "home"), HELD, ids=str)
def test_what_is_held_loads_as_that_class_and_generates(name: str, to: str, home: Home, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to=to, layout=home.layout, output=tmp_path / "out", **SIZES[to], **QUICK)
    base = AutoModel.from_pretrained(tmp_path / "out")
    assert base.config.model_type == (name if home.name == "same class" else home.name)
    assert (type(base).__module__.partition(".")[0] == "transformers") == (home.layout == "native")
    if name not in CONVERTIBLE:
        return  # what encoders give is held in test_encoders, what encoder-decoders give in test_seq2seq
    model = load(tmp_path / "out")
    ids = torch.randint(1, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    ids[0, :4] = 0
    both = generated(model, ids, mask)
    assert torch.equal(generated(model, ids, mask, cached=False), both)
    for row, start in ((0, 4), (1, 0)):
        alone = generated(model, ids[row : row + 1, start:], mask[row : row + 1, start:])
        assert torch.equal(alone[0], both[row])


OURS = [(name, home) for name, to, home in HELD if to == "mla" and home.layout == "custom"]


@pytest.mark.parametrize(("name", "home"), OURS, ids=str)
def test_a_latent_of_full_size_loses_nothing_either_way(name: str, home: Home, tmp_path: Path) -> None:
    """Logits are the original's; absorbed, expanded and whole texts agree; the cache has the size that was planned."""
    original = tiny_model(name)
    original.save_pretrained(tmp_path / "in")
    rotary = tiny_geometry(original)[1].turning_keys
    options = QUICK | {"rank": SIZES_OF_TINY["hidden_size"], "rope_dim": rotary or None, "layout": home.layout}
    made = convert(tmp_path / "in", to="mla", output=tmp_path / "out", **options)
    model = load(tmp_path / "out")
    assert_same_logits(logits_of(model), logits_of(original))
    ids = torch.randint(1, 97, (1, 9), generator=torch.Generator().manual_seed(1))
    whole = logits_of(model, 9, 1, ids)
    for mode in ("absorb", "expand"):
        model.config.latent_attention_mode = mode
        with torch.no_grad():
            first = model(ids[:, :5], use_cache=True)
            last = model(ids[:, 5:], **with_cache(model, cache_of(first)), use_cache=True)
        assert_same_logits(torch.cat([first.logits, last.logits], 1), whole)
        assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache_of(last).layers) == (
            9 * made.plan.cache_bytes[1]
        )


@pytest.mark.parametrize(("name", "to"), REFUSED, ids=str)
def test_what_is_refused_is_refused(name: str, to: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path / "in")
    with pytest.raises(UsageError):
        plan(tmp_path / "in", to=to, **SIZES[to])


def test_what_is_not_converted_is_none_of_them() -> None:
    assert cells().keys().isdisjoint(not_converted())
    assert not_converted().keys() == UNSUPPORTED.keys()


def test_it_is_printed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = command("inspect", "--families")
    assert (shown.code, shown.err) == (0, "")
    found = json.loads(command("inspect", "--families", "--json").out)
    assert list(found["families"]) == list(cells())
    for name, row in cells().items():
        (line,) = (line for line in shown.out.splitlines() if line.replace("│", " ").split()[:1] == [name])
        assert all(home["name"] in line for cell in found["families"][name].values() for home in cell["classes"])
        assert [len(cell["classes"]) for cell in found["families"][name].values()] == [
            len(row[to].homes) for to in COLUMNS
        ]
    assert found["not_converted"] == not_converted()


def test_a_model_and_all_families_are_not_asked_for_at_once(command: Command) -> None:
    refused = command("inspect", "sample:gpt2", "--families")
    assert (refused.code, refused.err) == (
        2,
        "Error: --families is about all models: drop MODEL, --serving and --for\n",
    )
    assert "Missing argument 'MODEL'" in command("inspect").err


def test_readme_has_the_table() -> None:
    files = {arch.model_type for arch in discover(archs.__name__, "ARCHITECTURE", archs.Architecture)}
    if files != architectures().keys():
        pytest.skip("README is for the newest transformers, which knows of more families")
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- families -->\n")[2].partition("\n<!-- end of families -->")[0]
    assert table == markdown()
