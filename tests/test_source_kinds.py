"""Folders as they are found: adapters, quantised weights, other formats, wrappers' names, shared memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of, edit_config, edit_tensors, reshard, save_tiny, tensors_of, to_bin
from tiny import HEADS, load, logits_of, tiny_model
from transformers import AutoModelForQuestionAnswering

from convert_attn import ConvertAttnError, UsageError, convert, inspect
from convert_attn.convert.checkpoint.loading import load_language_model
from convert_attn.convert.checkpoint.quantised import evidence
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.safetensors_format import TensorInfo
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.conversion.api import plan

FAST = {"to": "gqa", "groups": 2, "method": "mean"}


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


def assert_refused(folder: Path, sentence: str, command: Command, code: int = 2) -> None:
    """In the same sentence by every command that takes a source, and nothing is written."""
    for arguments in (["--to", "mqa", "--output", folder.parent / "o"], ["--dry-run", "--to", "mqa"]):
        outcome = command("convert", folder, *arguments)
        assert outcome.code == code, outcome
        assert re.fullmatch(rf"Error: [^\n]*{sentence}[^\n]*\n", outcome.err), outcome.err
    assert re.search(sentence, command("inspect", folder).err)
    assert re.search(sentence, command("eval", folder, folder, "--no-speed").err)
    assert not (folder.parent / "o").exists()


# --- adapters


def test_an_adapter_beside_weights_is_refused_everywhere(tmp_path: Path, command: Command) -> None:
    folder = touch(save_tiny(tmp_path / "in", "llama"), "adapter_config.json", "adapter_model.safetensors")
    assert_refused(folder, r"has a PEFT adapter \(adapter_config\.json\) beside its weights.*merge_and_unload", command)
    (folder / "adapter_config.json").unlink()  # the weights of one alone are not looked at by transformers
    assert "adapter_model.safetensors" in plan(folder, **FAST).warnings[0]
    convert(folder, **FAST, output=tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_alone_is_called_one(config: bool, tmp_path: Path, command: Command) -> None:
    folder = touch(tmp_path / "in", "adapter_config.json", "adapter_model.safetensors")
    if config:
        (folder / "config.json").write_text('{"model_type": "llama"}')
    assert_refused(folder, r"is a PEFT adapter \(adapter_config\.json\), not a model: .*merge_and_unload", command)


def test_a_result_that_got_an_adapter_is_not_verified(tmp_path: Path, command: Command) -> None:
    convert(save_tiny(tmp_path / "in", "llama"), **FAST, output=tmp_path / "out")
    touch(tmp_path / "out", "adapter_config.json")
    assert "has a PEFT adapter" in command("verify", tmp_path / "out").err


# --- quantised


PACKED = {
    "GPTQ, AWQ": ("qweight", "I32", (8, 64)),
    "compressed-tensors": ("weight_packed", "I32", (64, 8)),
    "its scales": ("weight_scale", "F32", (64, 1)),
    "FP8": ("weight", "F8_E4M3", (64, 64)),
    "DeepSeek": ("weight_scale_inv", "F32", (1, 1)),
    "bitsandbytes 8": ("SCB", "F32", (64,)),
    "bitsandbytes 4": ("weight.absmax", "F32", (64,)),
    "its state": ("weight.quant_state.bitsandbytes__nf4", "U8", (80,)),
    "HQQ": ("W_q", "U8", (32, 64)),
    "int8": ("weight", "I8", (64, 64)),
    "MLX": ("weight", "U32", (64, 8)),
    "quanto": ("weight._data", "I8", (64, 64)),
    "unknown": ("something", "I16", (64, 8, 2)),
}


@pytest.mark.parametrize("case", PACKED)
def test_quantised_tensors_are_known_by_name_or_dtype(case: str) -> None:
    local, dtype, shape = PACKED[case]
    plain = TensorInfo(name="model.layers.0.self_attn.k_proj.weight", dtype="BF16", shape=(64, 64), file="f", offset=0)
    packed = TensorInfo(name=f"model.layers.0.self_attn.q_proj.{local}", dtype=dtype, shape=shape, file="f", offset=0)
    assert packed.name in str(evidence([plain, packed]))


def test_masks_and_positions_are_not_quantised() -> None:
    buffers = {
        "h.0.attn.bias": ("U8", (1, 1, 64, 64)),
        "h.0.attn.masked_bias": ("F32", ()),
        "model.position_ids": ("I64", (1, 64)),
        "mask": ("BOOL", (64, 64)),
        "step": ("I64", ()),
    }
    assert (
        evidence(
            TensorInfo(name=name, dtype=dtype, shape=shape, file="f", offset=0)
            for name, (dtype, shape) in buffers.items()
        )
        is None
    )


def test_a_gptq_checkpoint_without_its_config_is_refused_everywhere(tmp_path: Path, command: Command) -> None:
    def pack(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            stem = name.removesuffix("weight")
            rows, columns = tensors.pop(name).shape
            tensors |= {f"{stem}qweight": torch.zeros(columns // 8, rows, dtype=torch.int32)}
            tensors |= {f"{stem}scales": torch.ones(1, rows, dtype=torch.float16)}

    folder = edit_tensors(save_tiny(tmp_path / "in", "llama"), pack)
    assert_refused(folder, r"'.*in' is quantised \(.*qweight.*\): convert the original in fp32, fp16 or bf16", command)
    assert "is quantised" in command("inspect", folder, "--serving").err
    edit_config(folder, quantization_config={"quant_method": "gptq"})
    assert_refused(folder, r"is quantised \(gptq: .*qweight", command)


LEFTOVERS: dict[str, dict[str, Any]] = {
    "quantization_config": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "compression_config": {"compression_config": {"quant_method": "compressed-tensors"}},
    "quantization": {"quantization": {"bits": 4, "group_size": 64}},
    "extra.quantization_config": {"extra": {"quantization_config": {"quant_method": "awq"}}},
    "unknown": {"quantization_config": "yes"},
}


@pytest.mark.parametrize("case", LEFTOVERS)
def test_what_a_config_says_of_quantisation_does_not_stop_plain_weights(
    case: str, tmp_path: Path, command: Command
) -> None:
    folder = edit_config(save_tiny(tmp_path / "in", "llama"), **LEFTOVERS[case])
    key = "quantization_config" if case == "unknown" else case
    outcome = command(folder, "--to", "gqa", "--groups", "2", "--method", "mean", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert re.search(rf"Warning: config\.json has {re.escape(key)}.*but the weights are plain", outcome.out)
    assert "quanti" not in json.dumps(config_of(tmp_path / "out"))
    assert "compression" not in json.dumps(config_of(tmp_path / "out"))
    assert key in inspect(folder).warnings[0]
    # and whoever loads the whole model gets its weights as they are
    torch.testing.assert_close(
        logits_of(load_language_model(folder, "in", dtype=torch.float32)), logits_of(tiny_model("llama"))
    )


def test_without_weights_to_look_at_the_warning_says_so(tmp_path: Path) -> None:
    folder = edit_config(save_tiny(tmp_path / "in", "llama"), **LEFTOVERS["quantization_config"])
    (folder / "model.safetensors").unlink()
    assert "was not seen" in inspect(folder).warnings[0]


# --- other formats


def _alone(*names: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        touch(folder, *names)

    return change


def _renamed(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


FORMATS: dict[str, tuple[Callable[[Path], object], str]] = {
    "GGUF": (_alone("model-q4_k.gguf"), r"found model-q4_k\.gguf: GGUF.*give the transformers checkpoint"),
    "TensorFlow": (_alone("tf_model.h5"), r"found tf_model\.h5: TensorFlow weights.*transformers 4"),
    "Flax": (_alone("flax_model.msgpack"), r"found flax_model\.msgpack: Flax weights.*transformers 4"),
    "ONNX": (_alone("onnx/model.onnx"), r"found onnx/model\.onnx: ONNX"),
    "Meta's": (_alone("consolidated.00.pth", "params.json"), r"found consolidated\.00\.pth: its maker's own format"),
    "DeepSpeed": (_alone("global_step5/mp_rank_00_model_states.pt"), r"DeepSpeed.*zero_to_fp32"),
    "torch": (_alone("model.pth"), r"found model\.pth: a torch file of another name"),
    "variant": (_renamed("model.fp16.safetensors"), r"found model\.fp16\.safetensors, the variant 'fp16'.*rename it"),
    "bin variant": (_alone("pytorch_model.fp16.bin"), r"the variant 'fp16'.*rename it to pytorch_model\.bin"),
    "sharded variant": (_alone("model.fp16-00001-of-00002.safetensors"), r"the variant 'fp16'.*rename it"),
    "other name": (_renamed("LLaMA.safetensors"), r"found LLaMA\.safetensors: .*rename it to model\.safetensors"),
    "broken off": (_alone("model.safetensors.incomplete"), r"a download that was broken off: download the checkpoint"),
    "below": (_alone("checkpoint-5/model.safetensors"), r"found checkpoint-5/.*: give --subfolder checkpoint-5"),
    "no index": (
        lambda folder: (reshard(folder) / "model.safetensors.index.json").unlink(),
        r"found model-00001-of-00002\.safetensors, a shard without its index: download model\.safetensors\.index\.json",
    ),
    "one shard": (
        _alone("pytorch_model-00001-of-00003.bin"),
        r"download pytorch_model\.bin\.index\.json and pytorch_model-00002-of-00003\.bin too",
    ),
}


@pytest.mark.parametrize("case", FORMATS)
def test_weights_that_are_not_read_are_told_by_name(case: str, tmp_path: Path) -> None:
    change, sentence = FORMATS[case]
    folder = save_tiny(tmp_path / "in")
    change(folder)
    with pytest.raises(UsageError, match=rf"no weights in .*/in that can be read: expected model\.safe.*{sentence}"):
        convert(folder, **FAST, output=tmp_path / "out")


WITHOUT_CONFIG: dict[str, tuple[tuple[str, ...], str]] = {
    "GGUF": (("llama.gguf",), r"found llama\.gguf: GGUF"),
    "diffusers": (("model_index.json", "unet/config.json"), r"diffusers pipeline"),
    "Meta's": (("consolidated.00.pth", "params.json"), r"its maker's own format"),
    "sentence-transformers": (
        ("modules.json", "0_Transformer/config.json", "1_Pooling/config.json"),
        r"sentence-transformers folder; .*--subfolder 0_Transformer",
    ),
    "nothing": (("a.txt",), r"give a folder with a transformers checkpoint$"),
}


@pytest.mark.parametrize("case", WITHOUT_CONFIG)
def test_a_folder_without_a_config_is_called_what_it_is(case: str, tmp_path: Path) -> None:
    names, sentence = WITHOUT_CONFIG[case]
    with pytest.raises(UsageError, match=rf"has no config\.json: .*{sentence}"):
        convert(touch(tmp_path / "in", *names), **FAST, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.1"}, "a diffusers model"),
        ({"architecture": "resnet50", "num_features": 9, "pretrained_cfg": {}}, r"a timm model \(resnet50\)"),
        ({"peft_type": "LORA"}, "the settings of a PEFT adapter"),
        ({"dim": 1, "n_layers": 1, "n_heads": 1}, "its maker's own format"),
        ({"hidden_size": 1}, "it is no transformers model$"),
    ],
)
def test_a_config_of_another_library_is_called_what_it_is(
    config: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (touch(tmp_path / "in", "model.safetensors") / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConvertAttnError, match=sentence):
        convert(tmp_path / "in", **FAST, output=tmp_path / "out")


@pytest.mark.parametrize(("name", "sentence"), [("x.gguf", "GGUF"), ("model.safetensors", "give the folder that")])
def test_a_file_is_no_folder(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"is a file: give the folder .*{sentence}|is a file: {sentence}"):
        convert(touch(tmp_path, name) / name, **FAST, output=tmp_path / "out")


# --- names


def _prefixed(prefix: str) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"{prefix}{name}"] = tensors.pop(name)

    return change


def _wrapped(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[name.replace("q_proj.", "q_proj.base_layer.")] = tensors.pop(name)
        tensors[name.replace("q_proj.weight", "q_proj.lora_A.default.weight")] = torch.ones(2, 64)


def _inside(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[re.sub(r"layers\.(\d+)\.", r"layers.\1._checkpoint_wrapped_module.", name)] = tensors.pop(name)


NAMES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "compiled": (_prefixed("_orig_mod."), r"'_orig_mod\.' of torch\.compile"),
    "data parallel": (_prefixed("module."), r"'module\.' of DataParallel"),
    "both": (_prefixed("module._orig_mod."), r"take '_orig_mod\.' out"),
    "inside": (_inside, r"'_checkpoint_wrapped_module\.' of activation checkpointing"),
    "PEFT": (_prefixed("base_model.model."), r"begin with 'base_model\.model\.model\.'.*get_base_model"),
    "base_layer": (_wrapped, r"'.*base_layer.*': its layers are wrapped by PEFT.*merge_and_unload"),
    "vision-language": (_prefixed("language_model."), r"begin with 'language_model\.model\.'.*language model inside"),
    "another head's": (
        _prefixed("backbone."),
        r"begin with 'backbone\.model\.' where 'model\.' or nothing is",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_with_another_prefix_are_told(case: str, tmp_path: Path, command: Command) -> None:
    change, sentence = NAMES[case]
    folder = edit_tensors(save_tiny(tmp_path / "in", "llama"), change)
    with pytest.raises(UsageError, match=f"has no tensor 'model.layers.0.self_attn.q_proj.weight', .*{sentence}"):
        convert(folder, **FAST, output=tmp_path / "out")
    assert re.search(sentence, command("inspect", folder).err)
    # transformers would load such a folder with random numbers
    with pytest.raises(ConvertAttnError, match=r"parameters are missing.* random numbers"):
        load_language_model(folder, "in", dtype=torch.float32)


def test_a_head_class_may_call_its_base_model_otherwise(tmp_path: Path) -> None:
    """Llama's class for question answering says "transformer." where all others say "model."."""
    config = tiny_model("llama").config
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    assert model.base_model_prefix == "transformer"
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=HEADS, output=tmp_path / "out")
    found = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(1, 25)[None]
    torch.testing.assert_close(found(ids).start_logits, model(ids).start_logits)


# --- memory that tensors share


def test_tensors_that_share_memory_are_all_written(model_type: str, tmp_path: Path) -> None:
    """An up-scaled model whose second layer is its first, saved without a copy; a slice and a head, too."""
    model = tiny_model(model_type)
    state = model.state_dict()
    for name in [name for name in state if ".1." in name]:
        first = state.get(name.replace(".1.", ".0."))
        if first is not None and first.shape == state[name].shape:  # the first layer may have an MLP of another kind
            state[name] = first
    model.load_state_dict(state)
    norms = [name for name in state if ("norm" in name or ".ln_" in name) and state[name].ndim == 1]
    cut = (norms or list(state))[0]  # some norms have no weight
    wide = torch.cat([state[cut], torch.zeros(5, *state[cut].shape[1:])])
    state[cut] = wide[: len(state[cut])]
    head = model.get_output_embeddings()
    name = next((name for name, part in model.named_modules() if part is head), "lm_head")
    state[f"{name}.weight"] = head.weight.detach()
    model.save_pretrained(tmp_path / "in")
    to_bin(tmp_path / "in", state)
    expected = logits_of(load(tmp_path / "in"))
    convert(tmp_path / "in", to="gqa", groups=HEADS, output=tmp_path / "out")
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), expected)
    torch.testing.assert_close(expected, logits_of(model))


TIED = {
    "gqa": {"to": "gqa", "groups": 2, "method": "mean"},
    "mqa": {"to": "mqa", "method": "mean"},
    "mla": {"to": "mla", "rank": 32},
    "mla native": {"to": "mla", "rank": 32, "layout": "native"},
}


@pytest.mark.parametrize("case", TIED)
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_tied_head_in_a_bin_works_for_every_target(model_type: str, case: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "bin")
    to_bin(tmp_path / "bin", model.state_dict())
    names = Source.open(resolve(str(tmp_path / "bin"))).weights.infos
    assert "lm_head.weight" not in names  # the class ties it: stored once
    try:
        convert(tmp_path / "plain", **TIED[case], output=tmp_path / "expected")
    except UsageError as error:
        with pytest.raises(UsageError, match=re.escape(str(error).split(" with ")[0][:40])):
            convert(tmp_path / "bin", **TIED[case], output=tmp_path / "out")
        return
    convert(tmp_path / "bin", **TIED[case], output=tmp_path / "out")
    assert tensors_of(tmp_path / "out").keys() == tensors_of(tmp_path / "expected").keys()
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(load(tmp_path / "expected")))
