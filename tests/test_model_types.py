"""What cannot be converted is called what it is."""

from __future__ import annotations

import pytest

from convert_attn import UsageError
from convert_attn.convert.archs import UNSUPPORTED, architectures
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.targets import convertible

KINDS = {
    "is an encoder-decoder: ": ("t5", "bart", "mbart", "marian", "pegasus", "led", "m2m_100", "encoder-decoder"),
    "is a speech-to-text model with an encoder and a decoder: ": ("whisper", "speech_to_text"),
    "is a speech model": ("wav2vec2", "hubert"),
    "is a state-space, recurrent or hybrid model": ("mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "qwen3_next"),
    "is a vision-language": ("llava", "qwen2_vl", "blip-2", "idefics", "mllama", "paligemma"),
    "is encoder-only: it keeps no KV cache": ("bert", "roberta", "esm", "modernbert", "deberta-v2"),
    r"is no causal language model \(transformers has it for: .*image classification": ("vit", "clip", "timm_wrapper"),
    "is a causal language model whose attention convert-attn has no facts of": ("xglm", "qwen2_moe", "ctrl"),
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
    assert "gpt_bigcode" in architectures().keys() - listed  # only comes out of a conversion
