"""What a folder's tokenizer is and does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

# letters of several scripts, numbers, code, white space of all kinds, and what is special somewhere
TEXTS = (
    "The quick brown fox; 12345 + 0.5 = 12345.5",
    "def f(x):\n\treturn x  # naïve café, Ünïcödé\n\n",
    "Καλημέρα κόσμε, привет мир, 你好世界, こんにちは, 🙂",
    "<s>[INST] user <|endoftext|> </s> <pad> <unk>",
)
_GIVEN = "class of its model type"
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def has_tokenizer(folder: str) -> bool:
    """Tell whether a folder holds any file of a tokenizer; settings that name no class are none by themselves."""
    if any((Path(folder) / name).is_file() for name in FILES):
        return True
    settings = Path(folder) / "tokenizer_config.json"
    if not settings.is_file():
        return False
    named = json.loads(settings.read_text(encoding="utf-8"))
    return not isinstance(named, dict) or bool(named.get("tokenizer_class") or named.get("auto_map"))


def describe(folder: str, trust: bool) -> dict[str, Any] | None:
    """Load a folder's tokenizer and tell its class, its special tokens, its templates, and the ids of probe texts.

    Returns:
        None where the folder has no vocabulary: some classes make an empty one of nothing.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    own = {name for name in tokenizer.vocab_files_names.values() if isinstance(name, str)}
    if own and not any((Path(folder) / name).is_file() for name in own | {*FILES}):
        return None
    model_type = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("model_type")
    return {
        _GIVEN: TOKENIZER_MAPPING_NAMES.get(model_type),
        "class": type(tokenizer).__name__,
        "special tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "chat template": tokenizer.chat_template,
        "number of tokens": len(tokenizer),
        "padding side": tokenizer.padding_side,
        "longest input": tokenizer.model_max_length,
        "ids of a probe text": [tokenizer(text)["input_ids"] for text in TEXTS],
        "text of its ids": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in TEXTS],
    }


def compare(source: dict[str, Any], result: dict[str, Any]) -> str | None:
    """Say in a clause what differs between two descriptions, None where nothing does.

    Some model types give every checkpoint their own class, whatever its files name: that is no difference.
    """
    for what, expected in source.items():
        if what == _GIVEN or (what == "class" and result[what] == result[_GIVEN]):
            continue
        if result[what] != expected:
            found = _short(result[what])
            return f"has a tokenizer with another {what} than the source's ({found}, expected {_short(expected)})"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
