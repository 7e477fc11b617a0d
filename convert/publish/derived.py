"""What transformers derives from a model_type, written down where a conversion changes it: tokenizer and generation.

A folder that names no tokenizer class gets that of its model_type, with its special tokens; some model types override
the class that is named. So the installed transformers is asked what it makes of the source and what of the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import METADATA_FIELDS
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from convert_attn.convert.checkpoint.files import read_json
from convert_attn.modeling import FAMILIES

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER = "tokenizer.json"
_GENERATION_CONFIG = "generation_config.json"
# text in which tokenizers differ: spaces, case, accents, digits, line ends, other scripts
_PROBE = "def  f(x):\n\treturn Éa + 1024 # naïve 日本語 <s></s> I'm.\r\n"


def settle(source: Path, name: str, result: Path) -> tuple[str, ...]:
    """Make the result's tokenizer and generation those of the source, and say what could not be.

    Args:
        source: its folder.
        name: what it is loaded by, a Hub id or a folder: transformers knows some tokenizers by it.
        result: the folder that is written, with its config.json and the files that were carried.
    """
    types = [_read(folder / "config.json").get("model_type") for folder in (source, result)]
    changed = types[0] != types[1]
    if changed:
        _settle_generation(source, result)
    with _quiet():
        return _settle_tokenizer(source, name, result, changed)


def tokenizer_differences(source: Path, name: str, result: Path) -> tuple[str, ...]:
    """What AutoTokenizer reads otherwise from a result than from its source: names of traits, none where all is equal.

    A class that transformers gives to every checkpoint of the result's model_type, whatever the folder names, is no
    difference. Arguments as of `settle`; a source without a tokenizer differs from nothing.
    """
    with _quiet():
        before = _tokenizer(source, name)
        if before is None or not _has_files(source, before):
            return ()
        return _differences(before, _tokenizer(result), result)


def _settle_generation(source: Path, result: Path) -> None:
    """Without a generation_config.json, generation is set by what config.json happens to name."""
    if (result / _GENERATION_CONFIG).exists() or (source / _GENERATION_CONFIG).exists():
        return
    try:
        before, after = (
            GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
            for folder in (source, result)
        )
    except Exception:  # values that no generation takes: transformers ignores or refuses them in the source too
        return
    if _settings(before.to_dict()) != _settings(after.to_dict()):
        text = json.dumps(_settings(before.to_diff_dict()), indent=2, sort_keys=True)
        (result / _GENERATION_CONFIG).write_text(f"{text}\n", encoding="utf-8")


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in METADATA_FIELDS}


def _settle_tokenizer(source: Path, name: str, result: Path, changed: bool) -> tuple[str, ...]:
    before = _tokenizer(source, name)
    if before is None or not _has_files(source, before):
        return ()  # it has none that loads without code of its own
    kind, file = type(before).__name__, result / _TOKENIZER_CONFIG
    # what a folder leaves to a native model_type, another version of transformers may fill in otherwise
    native = _read(result / "config.json").get("model_type") not in FAMILIES
    unnamed = changed and not _read(file).get("tokenizer_class")
    if not unnamed and not _differences(before, _tokenizer(result), result):
        return ()
    _add(file, {"tokenizer_class": kind})
    if _differences(before, _tokenizer(result), result) or (changed and native):
        said = _read(file)
        special = {key: value for key, value in before.special_tokens_map.items() if isinstance(value, str)}
        _add(file, {key: value for key, value in special.items() if said.get(key) is None})
        if not (result / _TOKENIZER).exists() and hasattr(before, "backend_tokenizer"):
            before.backend_tokenizer.save(str(result / _TOKENIZER))
    different = _differences(before, _tokenizer(result), result)
    if different and hasattr(before, "backend_tokenizer"):
        different = _write_backend(before, result, different)
    if not different:
        return ()
    return (
        f"transformers {transformers.__version__} reads the tokenizer of the result otherwise than the source's {kind} "
        f"({', '.join(different)}): compare the two before use",
    )


def _write_backend(before: Any, result: Path, different: tuple[str, ...]) -> tuple[str, ...]:
    """Put what the source's class makes of its files (add_prefix_space, its own splitting) into tokenizer.json.

    The class that some model types force on a folder reads that file as it stands.

    Returns:
        the differences that are left; where there are no fewer, the file is as it was.
    """
    file = result / _TOKENIZER
    kept = file.read_bytes() if file.exists() else None
    before.backend_tokenizer.save(str(file))
    left = _differences(before, _tokenizer(result), result)
    if len(left) < len(different):
        return left
    file.unlink() if kept is None else file.write_bytes(kept)
    return different


def _tokenizer(folder: Path, name: str | None = None) -> Any:
    """What AutoTokenizer makes of a folder under the name that it is known by; None: nothing."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if name is not None:
            config._name_or_path = name
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except Exception:  # the tokenizer's class decides what it raises
        return None


def _has_files(folder: Path, tokenizer: Any) -> bool:
    """Whether a folder holds a tokenizer: some classes make an empty one of nothing."""
    files = [file for file in tokenizer.vocab_files_names.values() if isinstance(file, str)]
    return any((folder / file).is_file() for file in (*(files or [_TOKENIZER_CONFIG]), _TOKENIZER))


def _differences(before: Any, after: Any, result: Path) -> tuple[str, ...]:
    """Names of what two tokenizers do not share."""
    if after is None:
        return ("it does not load",)
    given = TOKENIZER_MAPPING_NAMES.get(_read(result / "config.json").get("model_type", ""))
    same = type(before) is type(after) or type(after).__name__ == given
    ours, theirs = _traits(before), _traits(after)
    return tuple(["class"] * (not same) + [key for key in ours if ours[key] != theirs[key]])


def _traits(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "special tokens": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "added tokens": {
            number: str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        },
        "ids": _ids(tokenizer),
        "chat template": tokenizer.chat_template,
        "model_max_length": tokenizer.model_max_length,
    }


def _ids(tokenizer: Any) -> Any:
    try:
        return tokenizer(_PROBE)["input_ids"]
    except Exception as error:  # a vocabulary without its own unknown token
        return str(error)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _add(path: Path, values: dict[str, Any]) -> None:
    """Set keys of a JSON file, all other bytes as they are where that can be."""
    content = _read(path)
    wanted = content | values
    if not values or wanted == content:
        return
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    opened = re.match(r"\s*\{(\s*)", text)
    if content and opened is not None and not values.keys() & content.keys():
        inner = opened[1]
        more = "".join(f"{json.dumps(key)}: {json.dumps(value)},{inner or ' '}" for key, value in values.items())
        widened = text[: opened.end()] + more + text[opened.end() :]
        if json.loads(widened) == wanted:
            path.write_text(widened, encoding="utf-8")
            return
    path.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Advice on how to load a tokenizer is for those who load it."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
