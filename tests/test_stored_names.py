"""Checkpoints whose stored names are not their class's: experts one by one or joined, with and without a prefix.

The family is one whose checkpoints mostly store experts one by one under older names, as transformers knows.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.conversion_mapping as mappings
from checkpoints import Tensors, config_of, edit_config, edit_tensors, tensors_of
from tiny import HEADS, assert_same_logits, load, logits_of, tiny_model
from torch import Tensor
from transformers.core_model_loading import Chunk, Transpose, WeightConverter, WeightRenaming

from convert_attn import convert, heal
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.conversion.api import plan
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.fitting.layers import Layers
from convert_attn.convert.fitting.measure import Measured
from convert_attn.convert.heal.result import Trained, _tensors
from convert_attn.convert.samples import sample_path
from convert_attn.convert.streaming.skeleton import Skeleton
from convert_attn.convert.text.windows import shipped_windows
from convert_attn.convert.verification.folder import verify

EXPERTS = 12  # more than ten: in the order of their numbers, not of their names
OPTIONS: dict[str, Any] = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": None}
ONE_BY_ONE, JOINED = "block_sparse_moe.experts.11.w1.weight", "mlp.experts.gate_up_proj"
FORMS = ("old", "new", "old bare", "new bare")


def saved(folder: Path, form: str, **options: Any) -> Any:
    """The model, saved under old names (experts one by one) or new ones (joined), with the base's prefix or bare."""
    model = tiny_model("mixtral", **OPTIONS | options)
    model.save_pretrained(folder, save_original_format=form.startswith("old"))
    if form.endswith("bare"):
        edit_tensors(folder, _without_prefix)
    stored = tensors_of(folder)
    assert any(name.endswith(ONE_BY_ONE if form.startswith("old") else JOINED) for name in stored)
    assert not any(name.endswith(JOINED if form.startswith("old") else ONE_BY_ONE) for name in stored)
    return model


def _without_prefix(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def is_attention(name: str) -> bool:
    return ".self_attn." in f".{name}"


# --- both ways, by transformers' own reading


@pytest.mark.parametrize("form", FORMS)
def test_a_class_is_read_as_transformers_reads_it_and_stored_as_it_was(form: str, tmp_path: Path) -> None:
    state = saved(tmp_path / "in", form).state_dict()
    source = Source.open(resolve(str(tmp_path / "in")))
    names, stored = source.names, tensors_of(tmp_path / "in")
    assert set(names.expected) == set(state)
    for name, tensor in names.read_all(state, source.weights.read):
        assert torch.equal(tensor, state[name])
    again: Tensors = {}
    for group in names.groups:
        again |= group.store(state.__getitem__)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    joined = names.stored(f"model.layers.0.{JOINED}")
    assert len(joined) == (2 * EXPERTS if form.startswith("old") else 1)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_one_by_one_are_the_model(form: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "in", form)
    tokens = torch.randint(1, 97, (2, 24))
    with torch.no_grad():
        states = model(input_ids=tokens, output_hidden_states=True).hidden_states
        skeleton = Skeleton(Source.open(resolve(str(tmp_path / "in"))))
        assert torch.equal(next(skeleton.embed([tokens])), states[0])
        calls = skeleton.calls(tokens)
        x = states[0]
        for layer, block in enumerate(skeleton.blocks):
            names = skeleton.names(lambda name, stem=f"{skeleton.stem}{layer}.": name.startswith(stem))
            with skeleton.filled(names):
                assert not any(parameter.is_meta for parameter in block.parameters())
                x = block(x, *calls[layer].args, **calls[layer].kwargs)
            assert all(parameter.is_meta for parameter in block.parameters())
            if layer + 1 < len(skeleton.blocks):  # the last one's output is followed by the norm
                torch.testing.assert_close(x, states[layer + 1], atol=1e-5, rtol=1e-5)


# --- conversions


@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_attention_stays_byte_for_byte_under_its_name(form: str, groups: int, tmp_path: Path) -> None:
    model = saved(tmp_path / "in", form)
    result = convert(tmp_path / "in", to="gqa", groups=groups, output=tmp_path / "out")
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert groups != HEADS or torch.equal(tensor, after[name])
        assert is_attention(name) or torch.equal(tensor, after[name])
    found = load(tmp_path / "out")
    assert type(found) is type(model)
    assert found.config.num_key_value_heads == groups
    assert result.verified is not None
    assert result.verified.figures["around_attention"] < 1e-5
    if groups == HEADS:
        assert_same_logits(logits_of(found), logits_of(model))


@pytest.mark.parametrize("form", ["old", "new"])
def test_beside_a_latent_experts_stay_byte_for_byte_under_their_names(form: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "in", form)
    options: dict[str, Any] = {"rank": 64, "rope_dim": 64, "calibration": None, "measure": False}
    convert(tmp_path / "in", to="mla", output=tmp_path / "out", **options)
    before, after = (
        {name: tensor for name, tensor in tensors_of(tmp_path / folder).items() if not is_attention(name)}
        for folder in ("in", "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    found = load(tmp_path / "out")
    assert_same_logits(logits_of(found), logits_of(model))
    found.save_pretrained(tmp_path / "again")
    assert tensors_of(tmp_path / "again").keys() == tensors_of(tmp_path / "out").keys()


@pytest.mark.parametrize("to", ["gqa", "mqa"])
def test_both_forms_come_to_the_same_model(to: str, tmp_path: Path) -> None:
    """On text, solved anew behind what the experts make of it."""
    windows = torch.randint(1, 97, (48, 32), generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "fit.npy", windows.numpy())
    sizes: dict[str, Any] = {"groups": 2} if to == "gqa" else {}
    logits = {}
    for form in ("old", "new"):
        saved(tmp_path / form, form)
        convert(tmp_path / form, to=to, calibration=str(tmp_path / "fit.npy"), output=tmp_path / f"{form} out", **sizes)
        logits[form] = logits_of(load(tmp_path / f"{form} out"))
    torch.testing.assert_close(logits["old"], logits["new"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["old", "new bare"])
@torch.no_grad()
def test_what_is_measured_is_what_the_classes_give(form: str, tmp_path: Path) -> None:
    sample = sample_path("llama")
    vocabulary = config_of(sample)["vocab_size"]
    saved(tmp_path / "in", form, vocab_size=vocabulary, max_position_embeddings=128)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(sample / name, tmp_path / "in" / name)
    found = convert(tmp_path / "in", to="mqa", calibration="none", output=tmp_path / "out").made.measured
    assert isinstance(found, Measured)
    windows, _ = shipped_windows(None, tmp_path / "in", "in", 128, vocabulary)
    for folder, estimate in ((tmp_path / "in", found.original), (tmp_path / "out", found.perplexity)):
        model = load(folder)
        losses = [float(torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])) for ids in windows]
        assert estimate.mean == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_any_such_checkpoint_is_verified(form: str, tmp_path: Path) -> None:
    saved(tmp_path / "in", form)
    assert verify(tmp_path / "in").figures["decodes"] < 1e-4


# --- healing


@pytest.mark.parametrize("learned", ["attention", "all"])
@pytest.mark.parametrize("form", ["old", "new", "old bare"])
def test_what_is_healed_is_stored_as_it_was(form: str, learned: str, tmp_path: Path) -> None:
    saved(tmp_path / "in", form)
    convert(tmp_path / "in", to="mqa", method="mean", output=tmp_path / "student")
    np.save(tmp_path / "text.npy", np.random.default_rng(0).integers(1, 97, (24, 16)))
    heal(
        tmp_path / "student",
        teacher=tmp_path / "in",
        data=tmp_path / "text.npy",
        output=tmp_path / "out",
        train=learned,
        tokens=16 * 16,
        seq_len=16,
        cpu=True,
        lr=1e-3,
        layer_share=0.5,
    )
    before, after = tensors_of(tmp_path / "student"), tensors_of(tmp_path / "out")
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(is_attention(name) for name in changed)
    assert any(".experts." in name for name in changed) == (learned == "all")
    load(tmp_path / "out")


def test_trained_tensors_go_back_where_their_parts_came_from(tmp_path: Path) -> None:
    """One expert tensor of the class, trained alone: its two halves per expert change, all else stays."""
    state = saved(tmp_path / "in", "old").state_dict()
    source, name = Source.open(resolve(str(tmp_path / "in"))), f"model.layers.1.{JOINED}"
    found = {
        stored: tensor
        for tensors in _tensors(source, Trained(frozenset({name}), lambda _: 2 * state[name]))
        for stored, tensor in tensors.items()
    }
    stored = tensors_of(tmp_path / "in")
    assert found.keys() == stored.keys()
    changed = {name: tensor for name, tensor in found.items() if tensor is not None}
    assert changed.keys() == {
        f"model.layers.1.block_sparse_moe.experts.{expert}.w{part}.weight"
        for expert in range(EXPERTS)
        for part in (1, 3)
    }
    assert all(torch.equal(tensor, 2 * stored[name]) for name, tensor in changed.items())


# --- attention that is stored otherwise than in the class


@pytest.fixture
def joined() -> Iterator[None]:
    """As if transformers knew of a family that stores queries, keys and values as one, and the output turned."""
    mappings.register_checkpoint_conversion_mapping(
        "llama",
        [
            WeightRenaming(r"\.attn\.", ".self_attn."),
            WeightConverter(
                "self_attn.qkv.weight",
                ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
                operations=[Chunk(dim=0)],
            ),
            WeightConverter("self_attn.out.weight", "self_attn.o_proj.weight", operations=[Transpose(0, 1)]),
        ],
    )
    yield
    mappings._checkpoint_conversion_mapping_cache.pop("llama")
    mappings.USER_REGISTERED_MAPPINGS.discard("llama")


def _join(tensors: Tensors) -> None:
    for layer in range(2):
        stem = f"model.layers.{layer}."
        parts = [tensors.pop(f"{stem}self_attn.{role}_proj.weight") for role in "qkv"]
        tensors[f"{stem}attn.qkv.weight"] = torch.cat(parts)
        tensors[f"{stem}attn.out.weight"] = tensors.pop(f"{stem}self_attn.o_proj.weight").T


@pytest.mark.usefixtures("joined")
def test_joined_attention_is_read_as_the_class_has_it(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "plain", save_original_format=False)
    shutil.copytree(tmp_path / "plain", tmp_path / "joined")
    edit_tensors(tmp_path / "joined", _join)
    assert_same_logits(logits_of(load(tmp_path / "joined")), logits_of(model))
    plans = [plan(tmp_path / name, to="gqa", groups=4) for name in ("plain", "joined")]
    for layer in range(2):
        plain, other = (Layers(made).read(layer) for made in plans)
        for name, part in vars(plain).items():
            assert not isinstance(part, Tensor) or torch.equal(part, getattr(other, name))
    # what is computed has the class's names, all else its own
    written = [{output.info.name: output.info.shape for output in made.outputs} for made in plans]
    assert written[0] == written[1]


@pytest.mark.usefixtures("joined")
def test_joined_attention_that_stays_keeps_its_names(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "in", save_original_format=False)
    edit_tensors(tmp_path / "in", _join)
    made = plan(tmp_path / "in", to="gqa", groups=HEADS)
    assert {output.info.name for output in made.outputs} == tensors_of(tmp_path / "in").keys()
    assert {output.origin for output in made.outputs} == {"copy"}


# --- what does not fit


def _lose_an_expert(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".experts.11." in name]:
        del tensors[name]


def _lose_half_an_expert(tensors: Tensors) -> None:
    del tensors["model.layers.1.block_sparse_moe.experts.5.w3.weight"]


def _narrow(tensors: Tensors) -> None:
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    tensors[name] = tensors[name][:, 1:]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            _lose_an_expert,
            r"made of \d+, 'model\.layers\.0\.block_sparse_moe.*' the first\) has shape \[11, .*expects \[12,",
        ),
        (
            _lose_half_an_expert,
            r"'model\.layers\.1\.mlp\.experts\.gate_up_proj' \(made of 23,.* cannot be put together",
        ),
        (_narrow, r"'model\.layers\.0\.mlp\.experts\.down_proj' \(made of 12,.* cannot be put together"),
    ],
)
def test_experts_that_do_not_fit_are_told_before_any_work(change: Any, sentence: str, tmp_path: Path) -> None:
    saved(tmp_path / "in", "old")
    edit_tensors(tmp_path / "in", change)
    with pytest.raises(ConvertAttnError, match=sentence):
        plan(tmp_path / "in", to="mqa")
    with pytest.raises(ConvertAttnError, match=sentence):
        verify(tmp_path / "in")


def test_a_tensor_that_is_stored_twice_has_no_place(tmp_path: Path) -> None:
    model = saved(tmp_path / "in", "old")
    name = f"model.layers.0.{JOINED}"
    edit_tensors(tmp_path / "in", lambda tensors: tensors.update({name: model.state_dict()[name]}))
    with pytest.raises(ConvertAttnError, match="is not expected by the result's class"):
        plan(tmp_path / "in", to="mqa")


def test_experts_have_no_last_projection_to_be_solved(tmp_path: Path) -> None:
    saved(tmp_path / "in", "old")
    with pytest.raises(UsageError, match="no single one does in mixtral"):
        plan(tmp_path / "in", to="mqa", refit="mlp", calibration="sample")


def test_more_layers_in_the_config_than_in_the_file_are_missed(tmp_path: Path) -> None:
    saved(tmp_path / "in", "old")
    edit_config(tmp_path / "in", num_hidden_layers=3)
    with pytest.raises(ConvertAttnError, match=r"'model\.layers\.2\.self_attn\.q_proj\.weight' is missing from"):
        plan(tmp_path / "in", to="mqa")
