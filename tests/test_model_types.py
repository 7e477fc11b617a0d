"""What cannot be converted is called what it is."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from convert_attn import UsageError
from convert_attn.convert import archs
from convert_attn.convert.archs import UNSUPPORTED, architectures, early
from convert_attn.convert.planning import model_types
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.targets import convertible

KINDS = {
    "is an encoder-decoder whose attention": ("led", "m2m_100", "blenderbot", "encoder-decoder"),
    "is a speech-to-text model with an encoder and a decoder whose attention": ("speech_to_text",),
    "is a speech model": ("wav2vec2", "hubert"),
    "is a state-space, recurrent or hybrid model": ("mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "qwen3_next"),
    "is a vision-language": ("llava", "qwen2_vl", "blip-2", "idefics", "paligemma", "mllama"),
    "is encoder-only, and an encoder whose attention convert-attn has no facts of": ("esm", "modernbert", "deberta-v2"),
    r"is no causal language model \(transformers has it for: .*image classification": ("vit", "clip", "timm_wrapper"),
    "is a causal language model whose attention convert-attn has no facts of": ("gemma3n_text", "ctrl"),
    "has no class in transformers, only code of its own .* save its weights as a Llama": ("baichuan", "internlm2"),
    "is not known here, nor to transformers": ("llamma", "chatglm", "", "no such type"),
}


@pytest.mark.parametrize(
    ("model_type", "sentence"), [(name, sentence) for sentence, names in KINDS.items() for name in names]
)
def test_a_type_that_cannot_be_converted_is_called_what_it_is(model_type: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"'{model_type}' {sentence}") as caught:
        architecture(model_type)
    assert ", ".join(convertible()) in str(caught.value)
    assert "nearest" not in str(caught.value) or model_type == "llamma"


def test_what_is_listed_as_convertible_is_what_some_target_holds() -> None:
    listed = set(convertible())
    assert listed <= architectures().keys()
    assert listed.isdisjoint(UNSUPPORTED)


def test_a_family_that_transformers_does_not_have_yet_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "later.py").write_text(
        "from dataclasses import replace\n"
        "from convert_attn.convert.archs.llama import ARCHITECTURE as LLAMA\n"
        'ARCHITECTURE = replace(LLAMA, model_type="later")\n'
    )
    package = importlib.import_module("convert_attn.convert.archs")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert "later" not in architectures()
    with pytest.raises(UsageError, match="'later' is not known here, nor to transformers"):
        architecture("later")


def test_a_class_that_is_not_right_yet_is_refused_with_the_release_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [arch for arch in architectures().values() if arch.since != "0"]
    assert late
    for module in (archs, model_types):  # transformers puts another module object in its place
        monkeypatch.setattr(module.transformers, "__version__", "5.16.0")
    for arch in late:
        assert early()[arch.model_type] == arch.since
        with pytest.raises(
            UsageError, match=f"'{arch.model_type}' needs transformers {arch.since}: its class in 5.16.0"
        ):
            architecture(arch.model_type)
