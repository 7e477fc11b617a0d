"""Checkpoints that older versions made still load and compute what they did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import config_of, tensors_of
from safetensors.torch import load_file
from tiny import load, source_of

from convert_attn import modeling
from convert_attn.convert.classes.auto_classes import auto_class_of
from convert_attn.convert.planning.provenance import describe, read_provenance
from convert_attn.convert.verification.stored import verify_folder

HERE = Path(__file__).parent / "golden"
FOLDERS = sorted(path.parent for path in HERE.glob("*/config.json"))


def test_every_class_of_ours_has_one() -> None:
    assert {config_of(folder)["model_type"] for folder in FOLDERS} == modeling.FAMILIES.keys()
    for folder in FOLDERS:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 50_000


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_loads_and_gives_the_logits_it_had(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    model = load(folder)
    ids = expected["ids"]
    if "scale_decoder_outputs" in config_of(folder) and not hasattr(type(model.config)(), "scale_decoder_outputs"):
        pytest.skip("this transformers has another key for whether the head's input is scaled, in its own class too")
    two_stacks = model.config.is_encoder_decoder
    given = source_of(model, ids) | {"decoder_input_ids": ids} if two_stacks else {"input_ids": ids}
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits, expected["logits"], atol=1e-5, rtol=1e-5)
    if not model.can_generate():  # an encoder
        return
    options = {"max_new_tokens": 8, "do_sample": False}
    cached, plain = (model.generate(**given, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_verifies_and_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):  # expected.safetensors is no part of the checkpoint
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config, provenance = read_provenance(tmp_path)
    verify_folder(tmp_path, auto_class_of(config), lambda stage, done, total: None)
    assert "in to " in describe(provenance)


def _kept(before: object, after: object) -> bool:
    """Whether a setting is as it was; of one that holds several, those that were not None."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(after.get(name, value) == value for name, value in before.items() if value is not None)
    return before == after


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_saved_again_it_keeps_its_settings_and_bytes(folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path / "again")
    before, after = config_of(folder), config_of(tmp_path / "again")
    written_anew = {"transformers_version", "auto_map", "torch_dtype"}
    changed = {key for key in before.keys() - written_anew if not _kept(before[key], after.get(key, before[key]))}
    assert changed == set()
    old, new = load_file(folder / "model.safetensors"), tensors_of(tmp_path / "again")
    for name, tensor in new.items():
        assert name not in old or torch.equal(tensor, old[name]), name
    # a class that reads two names of a tensor may write the other one
    first, second = load(folder).state_dict(), load(tmp_path / "again").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
