"""What checkpoints come as: formats, dtypes, tied names, side files, the Hub's cache, and no network."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import (
    Command,
    Tensors,
    config_of,
    contents,
    edit_config,
    edit_tensors,
    json_of,
    reshard,
    save_tiny,
    shards_of,
    tensors_of,
    to_bin,
)
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tiny import HEADS, load, logits_of, tiny_model

from convert_attn import ConvertAttnError, UsageError, convert, inspect
from convert_attn.convert.checkpoint import resolve as hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FAST = {"to": "gqa", "groups": 2, "method": "mean"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def assert_same_bytes(found: Tensors, expected: Tensors) -> None:
    """Equal names, dtypes, shapes and bytes."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        same = torch.equal(*(part.reshape(-1).view(torch.uint8) for part in (found[name], tensor)))
        assert same, name


def without_attention(tensors: Tensors) -> Tensors:
    inside = re.compile(r"\.(attn|self_attn|attention|self_attention)\.")
    return {name: tensor for name, tensor in tensors.items() if not inside.search(name)}


# --- formats


def _plain(folder: Path, state: Tensors) -> None:
    pass


FORMATS: dict[str, Any] = {
    "safetensors": _plain,
    "safetensors-sharded": lambda folder, state: reshard(folder),
    "bin": lambda folder, state: to_bin(folder, state),
    "bin-sharded": lambda folder, state: to_bin(folder, state, sharded=True),
    "bin-old-format": lambda folder, state: to_bin(folder, state, old_format=True),
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_tensors(form: str, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", **FAST, output=tmp_path / "reference")
    FORMATS[form](tmp_path / "in", model.state_dict())
    convert(tmp_path / "in", **FAST, output=tmp_path / "out")
    found, expected = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "reference")
    if form == "bin-sharded":  # tied names in two pickles are two tensors there, and stay two
        torch.testing.assert_close(found.pop("lm_head.weight"), expected["transformer.wte.weight"])
    assert_same_bytes(found, expected)
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(load(tmp_path / "reference")))


@pytest.mark.parametrize("form", ["safetensors-sharded", "bin-sharded"])
def test_the_result_is_sharded_like_the_source(form: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in")
    FORMATS[form](tmp_path / "in", model.state_dict())
    convert(tmp_path / "in", **FAST, output=tmp_path / "out")
    shards = shards_of(tmp_path / "out")
    assert list(shards) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    if form == "safetensors-sharded":
        before = shards_of(tmp_path / "in")
        assert {file: set(names) for file, names in shards.items()} == {f: set(names) for f, names in before.items()}
    index = json_of(tmp_path / "out/model.safetensors.index.json")
    assert index["weight_map"] == {name: file for file, names in shards.items() for name in names}
    written = tensors_of(tmp_path / "out").values()
    assert index["metadata"]["total_size"] == sum(tensor.numel() * tensor.itemsize for tensor in written)


def test_a_single_shard_stays_one_file_without_index(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    convert(tmp_path / "in", **FAST, output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("model*.safetensors*")) == ["model.safetensors"]


def test_safetensors_go_before_bin(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    (tmp_path / "in/pytorch_model.bin").write_bytes(b"not looked at")
    convert(tmp_path / "in", **FAST, output=tmp_path / "out")
    assert not (tmp_path / "out/pytorch_model.bin").exists()


def test_equal_memory_under_two_names_is_not_tied_when_it_is_laid_out_differently(tmp_path: Path) -> None:
    """A square matrix and its transpose may share storage, but they are two tensors."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in")
    state = model.state_dict()
    names = [f"model.layers.0.self_attn.{kind}_proj.weight" for kind in ("q", "o")]
    state[names[1]] = state[names[0]].T
    to_bin(tmp_path / "in", state)
    convert(tmp_path / "in", to="gqa", groups=HEADS, output=tmp_path / "out")
    written = tensors_of(tmp_path / "out")
    torch.testing.assert_close(written[names[1]], written[names[0]].T)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in")
    to_bin(tmp_path / "in", model.state_dict(), sharded=True)
    twice = tmp_path / "in/pytorch_model-00002-of-00002.bin"
    torch.save(torch.load(twice, weights_only=True) | {"model.embed_tokens.weight": torch.zeros(97, 64)}, twice)
    with pytest.raises(ConvertAttnError, match=r"'model\.embed_tokens\.weight' is in two shards"):
        convert(tmp_path / "in", **FAST, output=tmp_path / "out")


# --- tied weights


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(("model_type", "kept"), [("gpt2", "transformer.wte"), ("llama", "model.embed_tokens")])
def test_tied_weights_are_stored_once_and_load_tied(model_type: str, kept: str, form: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "in")
    FORMATS[form](tmp_path / "in", model.state_dict())
    convert(tmp_path / "in", to="gqa", groups=HEADS, output=tmp_path / "out")
    names = tensors_of(tmp_path / "out").keys()
    assert f"{kept}.weight" in names
    assert "lm_head.weight" not in names
    loaded = load(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(logits_of(loaded), logits_of(model))


def test_tied_weights_may_be_stored_under_the_head_s_name(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "in")
    edit_tensors(
        tmp_path / "in", lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")})
    )
    convert(tmp_path / "in", to="gqa", groups=HEADS, output=tmp_path / "out")
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(model))


def test_the_hub_s_gpt2_without_prefix_and_with_mask_buffers_converts(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "in")

    def as_on_the_hub(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(64, 64).tril()[None, None]
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    before = tensors_of(edit_tensors(tmp_path / "in", as_on_the_hub))
    assert {"wte.weight", "h.0.attn.c_attn.weight", "h.0.attn.bias"} <= before.keys()
    assert config_of(tmp_path / "in")["architectures"] == ["GPT2LMHeadModel"]
    for groups in (HEADS, 2):
        convert(tmp_path / "in", to="gqa", groups=groups, method="mean", output=tmp_path / f"gqa{groups}")
        after = tensors_of(tmp_path / f"gqa{groups}")
        assert before.keys() - after.keys() == {f"h.{i}.attn.{b}" for i in range(2) for b in ("bias", "masked_bias")}
        assert_same_bytes(without_attention(after), without_attention(before))
    torch.testing.assert_close(logits_of(load(tmp_path / f"gqa{HEADS}")), logits_of(model))
    # and two groups give what the checkpoint with prefix gives
    model.save_pretrained(tmp_path / "prefixed")
    convert(tmp_path / "prefixed", **FAST, output=tmp_path / "expected")
    torch.testing.assert_close(logits_of(load(tmp_path / "gqa2")), logits_of(load(tmp_path / "expected")))


# --- dtypes and bytes


@pytest.mark.parametrize("asked", ["auto", *DTYPES])
@pytest.mark.parametrize("stored", DTYPES)
def test_dtype_is_the_source_s_or_the_one_asked_for(stored: str, asked: str, tmp_path: Path) -> None:
    model = tiny_model("llama").to(DTYPES[stored])
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", **FAST, dtype=asked, output=tmp_path / "out")
    expected = stored if asked == "auto" else asked
    after = tensors_of(tmp_path / "out")
    assert {tensor.dtype for tensor in after.values()} == {DTYPES[expected]}
    assert config_of(tmp_path / "out")["dtype"] == expected
    before = {name: tensor.to(DTYPES[expected]) for name, tensor in tensors_of(tmp_path / "in").items()}
    assert_same_bytes(without_attention(after), without_attention(before))


def test_both_spellings_of_the_dtype_follow_the_weights(tmp_path: Path) -> None:
    edit_config(save_tiny(tmp_path / "in"), dtype="float32", torch_dtype="float32")
    convert(tmp_path / "in", **FAST, dtype="bfloat16", output=tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")


@pytest.mark.parametrize("to", ["gqa", "mqa"])
def test_every_tensor_outside_attention_keeps_its_bytes(model_type: str, to: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "in", model_type)
    groups = 2 if to == "gqa" else None
    convert(tmp_path / "in", to=to, groups=groups, method="mean", output=tmp_path / "out")
    before = without_attention(tensors_of(tmp_path / "in"))
    if config_of(tmp_path / "out")["model_type"] == "gpt_bigcode":
        before = {name: tensor.T if re.search(r"mlp\.\w+\.weight", name) else tensor for name, tensor in before.items()}
    assert_same_bytes(without_attention(tensors_of(tmp_path / "out")), before)


# --- side files

CARRIED = {
    "tokenizer.json": b'{"version": "1.0"}\n',
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{ }",
    "merges.txt": b"a b\r\n",
    "tokenizer.model": bytes(range(256)),
    "generation_config.json": b'{"eos_token_id": 0}',
    "chat_template.jinja": "{{ 'é' }}".encode(),
    "LICENSE": b"free",
    "LICENSE.md": b"free",
    "NOTICE.txt": b"thanks",
}
LEFT = {
    "modeling_own.py": b"raise SystemExit",
    "tokenization_own.py": b"raise SystemExit",
    "pytorch_model.bin": b"not looked at",
    "flax_model.msgpack": b"0",
    "tf_model.h5": b"0",
    "model.onnx": b"0",
    "model-q4.gguf": b"0",
    "rust_model.ot": b"0",
    "consolidated.00.pth": b"0",
    "optimizer.pt": b"0",
    "adapter_model.safetensors": b"0",
    "pytorch_model.bin.index.json": b"{}",
    "tf_model.h5.index.json": b"{}",
    "model.safetensors.index.fp16.json": b"{}",
    ".gitattributes": b"0",
}


def test_side_files_are_carried_byte_for_byte_and_nothing_else(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    for name, data in (CARRIED | LEFT).items():
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in/onnx").mkdir()
    (tmp_path / "in/onnx/config.json").write_text("{}")
    (tmp_path / "in/README.md").write_text("# The source's own card")
    convert(tmp_path / "in", to="mqa", method="mean", output=tmp_path / "out")
    after = contents(tmp_path / "out")
    assert {name: after.get(name) for name in CARRIED} == CARRIED
    assert after.keys() - CARRIED.keys() == {"config.json", "model.safetensors", "README.md"}
    assert "The source's own card" not in (tmp_path / "out/README.md").read_text()


def test_licence_and_language_of_the_source_s_card_are_carried_over(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    (tmp_path / "in/README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\nlanguage: [en, de]\ntags: [x]\n---\n# Hi\n"
    )
    convert(tmp_path / "in", **FAST, output=tmp_path / "out")
    data = ModelCard.load(tmp_path / "out/README.md").data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "mine", "LICENSE")
    assert data["language"] == ["en", "de"]
    assert "x" not in data["tags"]


@pytest.mark.parametrize(
    "card", ["", "no header", "---\n- a list\n---\n", "---\na: [\n---\n", "---\nlicense: [1, {}]\n---\n", "\xff\x00"]
)
def test_a_source_card_that_cannot_be_read_is_no_obstacle(card: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    (tmp_path / "in/README.md").write_bytes(card.encode("latin-1"))
    convert(tmp_path / "in", **FAST, output=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out/README.md").data.library_name == "transformers"


# --- what no source can be


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    name = "transformer.h.1.attn.c_attn.weight"
    save_tiny(tmp_path / "in")
    edit_tensors(tmp_path / "in", lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(UsageError, match=rf"quantised \(tensor '{re.escape(name)}' has dtype .*original in fp32"):
        convert(tmp_path / "in", **FAST, output=tmp_path / "out")


@pytest.mark.parametrize(
    "data", [b"", b"hello world" * 100, b"PK\x03\x04 no zip"], ids=["empty", "garbage", "broken zip"]
)
def test_a_bin_file_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    to_bin(save_tiny(tmp_path / "in"), {})
    (tmp_path / "in/pytorch_model.bin").write_bytes(data)
    with pytest.raises(ConvertAttnError, match=r"'pytorch_model.bin' (cannot be read|holds more than tensors)"):
        convert(tmp_path / "in", **FAST, output=tmp_path / "out")


@pytest.mark.parametrize(
    "value",
    [
        {"nested": torch.zeros(1)},
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
    ],
    ids=["dict", "sparse", "meta", "complex"],
)
def test_a_bin_file_holds_plain_tensors_only(value: object, tmp_path: Path) -> None:
    to_bin(save_tiny(tmp_path / "in"), {"model": value})
    with pytest.raises(ConvertAttnError, match=r"holds 'model' of type .*, expected a plain tensor"):
        convert(tmp_path / "in", **FAST, output=tmp_path / "out")


# --- the Hub, from its cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache: Path, checkpoint: Path, repo: str = "org/tiny-llama") -> Path:
    """A checkpoint as the Hub's client keeps it: blobs, a snapshot of links to them, a ref."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs/main").write_text(COMMIT)
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        blob = root / "blobs" / f"{number:040x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_hub_model_converts_offline_and_pins_its_commit(
    revision: str | None, sharded: bool, cache: Path, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "in", "llama")
    (tmp_path / "in/README.md").write_text("---\nlicense: mit\n---\n")
    expected = tensors_of(tmp_path / "in")
    if sharded:
        reshard(tmp_path / "in")
    cached(cache, tmp_path / "in")
    before = contents(cache)
    convert("org/tiny-llama", to="gqa", groups=HEADS, revision=revision, output=tmp_path / "out")
    assert contents(cache) == before
    assert_same_bytes(tensors_of(tmp_path / "out"), expected)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    facts = config_of(tmp_path / "out")["convert_attn"]
    assert (facts["source"], facts["source_commit"]) == ("org/tiny-llama", COMMIT)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.base_model, card.data.license) == ("org/tiny-llama", "mit")
    assert COMMIT in card.text


def test_the_output_of_a_hub_model_is_called_after_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(cache, save_tiny(tmp_path / "in", "llama"))
    monkeypatch.chdir(tmp_path)
    assert convert("org/tiny-llama", **FAST).output == Path("tiny-llama-gqa2")
    assert (tmp_path / "tiny-llama-gqa2/config.json").is_file()


def test_a_cached_hub_model_is_inspected_offline_from_its_headers(cache: Path, tmp_path: Path) -> None:
    cached(cache, save_tiny(tmp_path / "in", "llama"))
    found = inspect("org/tiny-llama")
    assert (found.commit, found.dtype) == (COMMIT, "F32")
    assert found.parameters == sum(parameter.numel() for parameter in tiny_model("llama").parameters())


def test_a_hub_model_with_only_its_config_cached_is_inspected_but_not_converted(cache: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "in", "llama")
    (tmp_path / "in/model.safetensors").unlink()
    cached(cache, tmp_path / "in")
    assert inspect("org/tiny-llama").parameters is None
    with pytest.raises(ConvertAttnError, match=r"not in the cache, and offline mode is on .*hf download"):
        convert("org/tiny-llama", **FAST, output=tmp_path / "out")


def test_a_shard_missing_from_the_cache_is_named(cache: Path, tmp_path: Path) -> None:
    snapshot = cached(cache, reshard(save_tiny(tmp_path / "in", "llama")))
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConvertAttnError, match=r"'model-00002-of-00002.safetensors', which is missing .*download"):
        convert("org/tiny-llama", **FAST, output=tmp_path / "out")


@pytest.mark.parametrize("model", ["org/bad name", "--", "a" * 200, "org/.git", "\0"])
def test_a_name_that_can_be_nothing_is_refused(model: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a folder nor a valid Hub id|is no folder"):
        convert(model, **FAST, output=tmp_path / "out")


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere", "a/b/c", "~/nowhere"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="is neither a folder nor a Hub id"):
        convert(model, **FAST, output=tmp_path / "out")


@pytest.mark.parametrize(("model", "sentence"), [("", "name is empty"), ("~nobody-of-this-name/x", "is no folder")])
def test_a_name_that_is_no_path_is_refused(model: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        convert(model, **FAST, output=tmp_path / "out")


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "in")
    with pytest.raises(UsageError, match="--revision is for Hub ids"):
        convert(tmp_path / "in", **FAST, revision="main", output=tmp_path / "out")


# --- the Hub, answering


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if there were a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return monkeypatch


def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error. (Request ID: x)\n\nfor url: y", response=response)


REFUSALS = {
    "gated": (refusal(GatedRepoError, 403), ConvertAttnError, r"'org/x' is gated: accept its terms .*hf auth login"),
    "missing": (refusal(RepositoryNotFoundError, 401), UsageError, r"not a local folder, and the Hub has no"),
    "revision": (refusal(RevisionNotFoundError, 404), UsageError, r"'org/x' has no revision 'v9'"),
    "forbidden": (refusal(HfHubHTTPError, 403), ConvertAttnError, r"the Hub refused 'org/x': 403 Client Error"),
    "down": (refusal(HfHubHTTPError, 503), ConvertAttnError, r"not in the cache, and the Hub cannot be reached"),
    "offline": (OSError("no route"), ConvertAttnError, r"the Hub cannot be reached: download it where .*hf download"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_of_the_hub_has_its_sentence(case: str, online: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error, kind, sentence = REFUSALS[case]

    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    online.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ConvertAttnError, match=sentence) as caught:
        convert("org/x", **FAST, revision="v9", output=tmp_path / "out")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def answer_with(online: pytest.MonkeyPatch, *names: str) -> list[dict[str, Any]]:
    """A Hub whose repositories have these files; the downloads asked for are noted in the list."""
    asked: list[dict[str, Any]] = []

    def model_info(*args: object, **kwargs: object) -> Any:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(repo: str, **kwargs: Any) -> str:
        asked.append(kwargs)
        raise refusal(GatedRepoError, 403)

    online.setattr(HfApi, "model_info", model_info)
    online.setattr(hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        ("model.safetensors pytorch_model.bin consolidated.safetensors", "model.safetensors"),
        ("model.safetensors pytorch_model.bin.index.json pytorch_model-1.bin", "model.safetensors"),
        (
            "model.safetensors.index.json model-1.safetensors pytorch_model.bin",
            "model-1.safetensors model.safetensors.index.json",
        ),
        ("pytorch_model.bin onnx/model.safetensors model.fp16.safetensors", "pytorch_model.bin"),
        (
            "pytorch_model.bin.index.json pytorch_model-1.bin tf_model.h5",
            "pytorch_model-1.bin pytorch_model.bin.index.json",
        ),
    ],
)
def test_only_the_weights_that_are_read_are_downloaded(
    names: str, weights: str, online: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    beside = ["tokenizer.json", "README.md", "additional_chat_templates/x.jinja", "1_Pooling/config.json", "own.py"]
    asked = answer_with(online, "config.json", "modules.json", "vae/a.json", "x[1].txt", *beside, *names.split())
    # the terms of a gated model are asked for when its files are, not before
    with pytest.raises(ConvertAttnError, match="'org/x' is gated: accept its terms"):
        convert("org/x", **FAST, output=tmp_path / "out")
    others = {"config.json", "modules.json", "x[[]1].txt", *beside}
    assert set(asked[0]["allow_patterns"]) == others | set(weights.split())
    assert asked[0]["local_files_only"] is False


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("config.json model-q4.gguf", r"no weights in 'org/x' .* found model-q4\.gguf: GGUF"),
        ("config.json tokenizer.json", r"no weights in 'org/x': expected model\.safetensors"),
        ("adapter_config.json adapter_model.safetensors", r"'org/x' is a PEFT adapter .* `merge_and_unload\(\)`"),
        ("config.json model.safetensors adapter_config.json", r"'org/x' has a PEFT adapter .*beside its weights"),
        ("model_index.json unet/config.json", r"'org/x' has no config\.json: .*diffusers pipeline"),
    ],
)
def test_a_repository_that_cannot_be_converted_is_refused_before_any_download(
    names: str, sentence: str, online: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = answer_with(online, *names.split())
    with pytest.raises(ConvertAttnError, match=sentence):
        convert("org/x", **FAST, output=tmp_path / "out")
    assert not asked


# --- no network: an answer within five seconds, whatever hangs

LIMIT = 5.0


def test_a_hub_that_never_answers_is_given_up_and_the_cache_used(
    online: pytest.MonkeyPatch, cache: Path, tmp_path: Path, command: Command
) -> None:
    assert hub._ONLINE_CHECK_SECONDS < LIMIT
    online.setattr(hub, "_ONLINE_CHECK_SECONDS", 0.3)
    online.setattr(HfApi, "model_info", lambda *args, **kwargs: time.sleep(60))
    started = time.monotonic()
    outcome = command("org/tiny-llama", "--to", "mqa", "--output", tmp_path / "out")
    assert time.monotonic() - started < LIMIT
    assert outcome.code == 1
    assert "the Hub cannot be reached" in outcome.err
    assert "`hf download org/tiny-llama`" in outcome.err
    cached(cache, save_tiny(tmp_path / "in", "llama"))
    convert("org/tiny-llama", **FAST, output=tmp_path / "out")
    assert config_of(tmp_path / "out")["convert_attn"]["source_commit"] == COMMIT


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_command_ends_within_five_seconds_without_a_network(silent_server: int, tmp_path: Path) -> None:
    script = (
        "import convert_attn.convert.conversion.run\nfrom convert_attn.convert.cli import main\n"
        "print('imported', flush=True)\n"
        "main()"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{silent_server}", "HF_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-c", script, "org/unknown", "--to", "gqa", "--groups", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "imported\n"
    started = time.monotonic()
    sentence = process.stderr.readline()
    assert time.monotonic() - started < LIMIT
    assert process.wait(timeout=30) == 1  # the hanging thread does not keep the process
    assert re.fullmatch(r"Error: 'org/unknown' is not a local folder .* the Hub cannot be reached: .*\n", sentence)
    assert process.stderr.read() == ""
    assert not (tmp_path / "unknown-gqa4").exists()
