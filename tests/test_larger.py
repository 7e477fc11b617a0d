"""Models that see too: the language model inside is converted, all else stays, and an image is read as before."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import Command, config_of, edit_config, edit_tensors, json_of, tensors_of
from larger import LARGER, SETTINGS, image_inputs, larger_config, larger_model, logits_with_image
from safetensors.torch import load_file
from tiny import HEADS, assert_same_logits
from transformers import CONFIG_MAPPING

from convert_attn import convert, inspect, verify
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.attention_tensors import join, split
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.geometry import geometry
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.auto_classes import auto_class_of
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.classes.language_model import language_model, place_of
from convert_attn.convert.classes.stored_names import StoredNames
from convert_attn.convert.conversion.api import plan
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.fitting.measure import Measured
from convert_attn.convert.samples import sample_path
from convert_attn.convert.text import windows as calibration_text
from convert_attn.convert.verification import cut
from convert_attn.convert.weights.attention import map_kv_heads, replicate_kv_heads

QUICK: dict[str, Any] = {"calibration": None, "measure": False}
NEW = 4


def load_larger(folder: Path) -> Any:
    """By its Auto class, in fp32."""
    auto = getattr(transformers, auto_class_of(config_of(folder)))
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def facts_of_text(name: str, config: dict[str, Any]) -> Architecture:
    """The facts of a language model's config, as it has them."""
    return architectures()[config["model_type"]].of(typed_config(config, name))


def equal_heads(model: Any, name: str, groups: int) -> None:
    """Make neighbouring K/V heads of the language model equal, in place."""
    raw = model.config.to_dict()
    within = language_model(raw, name)
    assert within is not None
    whole, base = facts_of_text(name, within.config), place_of(model, name)
    sizes, state = geometry(whole, within.config, name), model.state_dict()
    for layer in range(sizes.num_layers):
        arch, stem = whole.at(layer), base + whole.stem(layer)
        tensors = {local: state[stem + local].clone() for local in arch.tensors if stem + local in state}
        shared = map_kv_heads(split(arch, sizes, tensors), lambda heads: heads[:groups])
        new = {stem + local: part for local, part in join(arch, sizes, replicate_kv_heads(shared, HEADS)).items()}
        assert not model.load_state_dict(new, strict=False)[1]


@pytest.mark.parametrize("name", LARGER)
def test_as_many_groups_as_heads_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    larger_model(name).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=HEADS, output=tmp_path / "out", **QUICK)
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[stored]) for stored, tensor in before.items())


def parameter_of(names: StoredNames, stored: str) -> str:
    """What a stored tensor is in the class."""
    group = names.group_of(stored)
    assert group is not None
    return group.parameter


@pytest.mark.parametrize("name", LARGER)
def test_equal_heads_convert_without_loss_with_an_image_too(name: str, tmp_path: Path) -> None:
    model = larger_model(name)
    equal_heads(model, name, 2)
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", **QUICK)
    result = load_larger(tmp_path / "out")
    assert type(result) is type(model)
    assert result.config.get_text_config().num_key_value_heads == 2
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    source = Source.open(resolve(str(tmp_path / "in")))
    names, arch = source.names, facts_of_text(name, source.config)
    layers = range(source.config["num_hidden_layers"])
    changed = {f"{names.base}{arch.stem(layer)}{local}" for layer in layers for local in arch.at(layer).tensors}
    attention = {stored for stored in before if parameter_of(names, stored) in changed}
    others = before.keys() - attention
    assert any("vision" in stored or "visual" in stored for stored in others)
    assert all(torch.equal(before[stored], after[stored]) for stored in others)
    assert_same_logits(logits_with_image(result, name), logits_with_image(model, name))
    # another image gives another text, so that the one above was looked at
    other = image_inputs(name) | {"pixel_values": image_inputs(name)["pixel_values"] + 1}
    with torch.no_grad():
        assert not torch.allclose(result(**other).logits, logits_with_image(result, name), atol=1e-3)
    config, made = config_of(tmp_path / "in"), config_of(tmp_path / "out")
    assert {key for key in config if config[key] != made[key]} <= {"text_config", "transformers_version"}
    assert json_of(tmp_path / "out" / "preprocessor_config.json") == {"image_mean": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize("to", ["gqa", "mqa"])
@pytest.mark.parametrize("name", LARGER)
def test_with_an_image_it_generates_with_its_cache_what_it_does_without(name: str, to: Any, tmp_path: Path) -> None:
    larger_model(name).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to=to, groups=2 if to == "gqa" else None, output=tmp_path / "out", **QUICK)
    model, made = load_larger(tmp_path / "out"), []
    for use_cache in (True, False):
        found = model.generate(
            **image_inputs(name),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
        )
        made.append(torch.stack(found.logits, 1))
    torch.testing.assert_close(made[0], made[1], atol=2e-5 * float(made[0].abs().max()), rtol=1e-4)


def with_sample_tokenizer(folder: Path) -> Path:
    """A llava whose text is that of the samples."""
    vocabulary = config_of(sample_path("llama"))["vocab_size"]
    larger_model("llava", vocab_size=vocabulary + 1, max_position_embeddings=256).save_pretrained(folder)
    edit_config(folder, image_token_index=vocabulary)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sample_path("llama") / file, folder)
    return folder


def test_it_is_fitted_and_measured_on_text_alone_and_says_so(tmp_path: Path) -> None:
    source = with_sample_tokenizer(tmp_path / "in")
    result = convert(source, to="mqa", output=tmp_path / "out")
    found = result.made.measured
    assert isinstance(found, Measured)
    assert result.made.tokens > 0
    windows, _ = calibration_text.shipped_windows("auto", source, "in", 256, 10**6)
    losses = []
    for folder in (source, tmp_path / "out"):
        with torch.no_grad():
            logits = load_larger(folder)(input_ids=windows).logits[:, :-1].log_softmax(-1)
        losses.append(math.exp(-float(logits.gather(-1, windows[:, 1:, None]).mean())))
    assert [found.original.mean, found.perplexity.mean] == pytest.approx(losses, rel=1e-3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on text alone: no image was looked at" in card
    assert "pipeline_tag: image-text-to-text" in card
    assert "AutoModelForImageTextToText.from_pretrained" in card


def older_names(folder: Path) -> Path:
    """As checkpoints from before transformers 4.52 have them."""

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            new = name.removeprefix("model.") if name.startswith("model.") else f"language_model.{name}"
            if name.startswith("model.language_model."):
                new = new.replace("language_model.", "language_model.model.", 1)
            tensors[new] = tensors.pop(name)

    return edit_tensors(folder, rename)


@pytest.mark.parametrize("renamed", [False, True], ids=["new names", "old names"])
def test_stored_names_stay_whichever_they_are(renamed: bool, tmp_path: Path) -> None:
    model = larger_model("llava")
    equal_heads(model, "llava", 2)
    model.save_pretrained(tmp_path / "in", save_original_format=False)
    if renamed:
        older_names(tmp_path / "in")
    stored = load_file(tmp_path / "in/model.safetensors").keys()
    assert any(
        name.startswith("language_model.model.layers" if renamed else "model.language_model.") for name in stored
    )
    convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", **QUICK)
    assert load_file(tmp_path / "out/model.safetensors").keys() == stored
    assert_same_logits(logits_with_image(load_larger(tmp_path / "out"), "llava"), logits_with_image(model, "llava"))


def test_a_config_that_leaves_its_text_flat_stays_so(tmp_path: Path) -> None:
    larger_model("qwen2_vl").save_pretrained(tmp_path / "in")
    config = config_of(tmp_path / "in")
    text = {key: value for key, value in config.pop("text_config").items() if key != "model_type"}
    edit_config(tmp_path / "in", **text, text_config=None)
    convert(tmp_path / "in", to="mqa", output=tmp_path / "out", **QUICK)
    made = config_of(tmp_path / "out")
    assert "text_config" not in made
    assert (made["num_key_value_heads"], made["model_type"]) == (1, "qwen2_vl")
    assert load_larger(tmp_path / "out").config.get_text_config().num_key_value_heads == 1


def test_what_a_class_inside_cannot_be_is_refused(tmp_path: Path) -> None:
    larger_model("llava").save_pretrained(tmp_path / "in")
    with pytest.raises(UsageError, match="is a llama inside a llava, whose class makes it: it stays in its own class"):
        plan(tmp_path / "in", to="mla", rank=16)
    larger_config("paligemma").save_pretrained(tmp_path / "prefix")
    larger_model("paligemma").save_pretrained(tmp_path / "prefix")
    with pytest.raises(ConvertAttnError, match="lets tokens see others than those before them"):
        plan(tmp_path / "prefix", to="mqa")


def test_it_verifies_and_is_inspected(tmp_path: Path, command: Command) -> None:
    larger_model("qwen2_5_vl").save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out", **QUICK)
    assert verify(tmp_path / "out", against=tmp_path / "in").figures["cached_numbers"] == [2 * 2 * 8] * 2
    edit_tensors(tmp_path / "out", lambda found: found[next(n for n in found if "visual" in n)].add_(1))
    found = inspect(tmp_path / "in")
    assert [row.holders for row in found.rows if row.name == "GQA-2"] == [("qwen2_5_vl_text (native)",)]
    assert not any(row.name.startswith("MLA") for row in found.rows)
    shown = command("inspect", tmp_path / "out", "--serving")
    assert shown.code == 0, shown.err
    assert "transformers" in shown.out


def test_a_large_one_is_run_cut_to_some_blocks_of_its_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "SMALL", 0)
    larger_model("llava", num_hidden_layers=4).save_pretrained(tmp_path / "in")  # fewer than its image has
    result = convert(tmp_path / "in", to="mqa", output=tmp_path / "out", **QUICK)
    assert result.verified is not None
    assert result.verified.figures["cached_numbers"] == [2 * 8] * 3


def looking_at_images(folder: Path, **text: Any) -> Path:
    """A model with layers that look at images and at nothing else, and text like that of the samples."""
    vocabulary = config_of(sample_path("llama"))["vocab_size"]
    larger_model("mllama", vocab_size=vocabulary, max_position_embeddings=128, **text).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sample_path("llama") / file, folder)
    return folder


def test_what_no_text_goes_through_is_shared_by_weights_alone_and_the_card_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "SMALL", 0)
    source = looking_at_images(tmp_path / "in", num_hidden_layers=6, cross_attention_layers=[1, 4])
    results = {}
    for folder, calibration in (("text", "auto"), ("weights", None)):
        tokens = None if calibration is None else 2048
        options: dict[str, Any] = {"calibration": calibration, "calibration_tokens": tokens, "measure": False}
        made = convert(source, to="mqa", output=tmp_path / folder, **options)
        assert any("the attention of layer 1, 4 looks at images alone" in warning for warning in made.warnings)
        assert made.verified is not None
        assert made.verified.figures["cached_numbers"] == [2 * 8] * 4  # of layers 0, 1, 3 and 5
        assert made.verified.figures["decodes_seeing"] < 1e-3
        assert made.plan.cache_bytes == (4 * 6 * 2 * 64, 4 * 6 * 2 * 8)
        card = (tmp_path / folder / "README.md").read_text()
        assert "The attention of layer 1, 4 looks at images alone" in card
        assert "bytes per token of the text and one state of an image" in card
        results[folder] = tensors_of(tmp_path / folder)
    differ = {name for name, part in results["text"].items() if not torch.equal(part, results["weights"][name])}
    assert differ
    assert all("self_attn" in name for name in differ)
    assert any("cross_attn.k_proj" in name for name in results["text"])
    assert not config_of(convert_unchanged(source, tmp_path / "same"))["convert_attn"].get("unmeasured_layers")


def convert_unchanged(source: Path, folder: Path) -> Path:
    """With as many groups as heads."""
    convert(source, to="gqa", groups=HEADS, output=folder, **QUICK)
    return folder


def test_layers_that_look_at_images_have_no_latent_and_their_model_is_not_alone(tmp_path: Path) -> None:
    model = larger_model("mllama")
    model.save_pretrained(tmp_path / "in")
    with pytest.raises(UsageError, match="mllama_text_model has layers that look at images, and no class with a lat"):
        plan(tmp_path / "in", to="mla", rank=16)
    transformers.MllamaForCausalLM(model.config.get_text_config()).save_pretrained(tmp_path / "alone")
    with pytest.raises(ConvertAttnError, match="is a mllama_text_model by itself, which AutoModelForCausalLM of trans"):
        plan(tmp_path / "alone", to="mqa")
    text = config_of(tmp_path / "in")["text_config"]
    edit_config(tmp_path / "in", text_config=text | {"cross_attention_layers": [0]})
    with pytest.raises(ConvertAttnError, match="has an attention on images in its first layer"):
        plan(tmp_path / "in", to="mqa")


def test_every_larger_class_here_is_found(slow: bool) -> None:
    """Of all model types of transformers that hold a known family: one module is the language model."""
    if not slow:
        pytest.skip("--slow builds them all")
    found = {}
    for name in CONFIG_MAPPING:
        try:
            raw = CONFIG_MAPPING[name]().to_dict()
            within = language_model(raw, name)
            with torch.device("meta"):
                auto = auto_class_of({"model_type": name})
                model = getattr(transformers, auto).from_config(typed_config(raw, name))
        except Exception:  # needs what is not installed, or has no defaults that fit
            continue
        if within is not None and within.config["model_type"] in architectures():
            found[name] = place_of(model, name)
    assert set(LARGER) <= found.keys()
    assert len(found) >= 25
    assert SETTINGS.keys() <= found.keys()


def test_the_source_knows_both_configs(tmp_path: Path) -> None:
    larger_model("gemma3").save_pretrained(tmp_path / "in")
    source = Source.open(resolve(str(tmp_path / "in")))
    assert (source.config["model_type"], source.whole["model_type"]) == ("gemma3_text", "gemma3")
    assert source.names.base == "model.language_model."
