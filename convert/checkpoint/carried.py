"""What of a checkpoint goes into the result beside weights and config: by file names, so that it is known beforehand.

Every file is one of five: carried; code, which is carried only where it is the tokenizer's and trusted; read (weights,
config, card); of no use to a result (training state, other formats, caches); or left, which the user is told of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any, Literal

from convert_attn.convert.checkpoint.quantised import SETTINGS

Kind = Literal["carried", "code", "ignored", "left"]

_SIDE_FILES = (
    *("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.vocab", "*.bpe", "bpe.codes"),
    *("license*", "licence*", "notice*", "copying*", "use_policy*"),
)
TEMPLATES = "additional_chat_templates/*.jinja"
MODULES = "modules.json"  # of sentence-transformers: names folders
_MODULE_FOLDER = re.compile(r"\d+_\w+")
_MODULE_FILES = ("*.json", "*.txt", "*.safetensors")
_CODE = "*.py"
# config.json is written anew and the card is made from the source's; the rest tells of the source's own training
_IGNORED = (
    *("config.json", "readme.md", "model.safetensors", "model-?????-of-?????.safetensors", "pytorch_model*.bin"),
    *("*.index.json", "*.index.*.json", "params.json", "configuration.json"),
    *("training.json", "trainer_state.json", "trainer_log.jsonl", "*_results.json", "training_args.bin"),
    *("optimizer.*", "scheduler.*", "scaler.pt", "rng_state*", "random_states*", "events.out.tfevents*", "*.log"),
    *("latest", "zero_to_fp32.py", "all_results.json", "heal.jsonl", "heal.png", "__pycache__"),
    # weights in other formats, variants and the same model once more
    *("*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite", "*.pth", "*.ckpt", "*.pt"),
    *("model.*.safetensors", "model-*-of-*.*.safetensors", "consolidated*", "openvino_*", "tf_model*", "flax_model*"),
)
_IGNORED_FOLDERS = (
    *("onnx", "openvino", "coreml", "gguf", "tflite", "original", "flax", "tf", "runs", "logs", "wandb", "tensorboard"),
    *("checkpoint-*", "global_step*", "__pycache__"),
)
_NAMED = 12  # files, before the rest is counted


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in patterns)


def kind_of(name: str, modules: Collection[str] | None = None) -> Kind:
    """Tell what becomes of a file.

    Args:
        name: relative to the checkpoint's folder, with forward slashes.
        modules: the folders that modules.json names; those called like one (1_Pooling) are taken too. None: there is
            no modules.json.
    """
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return "ignored"
    if len(path.parts) == 1:
        return _top_kind(name)
    folder, own = path.parts[0], path.name
    if fnmatch(name, TEMPLATES):
        return "carried"
    named = modules is not None and (_MODULE_FOLDER.fullmatch(folder) or str(path.parent) in modules)
    if named and _matches(own, _MODULE_FILES):
        return "carried"
    return "ignored" if _matches(folder, _IGNORED_FOLDERS) else "left"


def _top_kind(name: str) -> Kind:
    if name in SETTINGS or name.startswith(("adapter_", "pytorch_adapter")):
        return "left"
    if _matches(name, _IGNORED):
        return "ignored"
    if _matches(name, (_CODE,)):
        return "code"
    return "carried" if _matches(name, _SIDE_FILES) else "left"


def to_download(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that are carried, or may be."""
    names = list(names)
    modules = () if MODULES in names else None
    return sorted(name for name in names if kind_of(name, modules) in ("carried", "code"))


def module_folders(content: Any) -> frozenset[str]:
    """Give the folders that sentence-transformers' modules.json names, none where it is no such list."""
    entries = content if isinstance(content, list) else []
    paths = (entry.get("path") for entry in entries if isinstance(entry, dict))
    return frozenset(str(PurePosixPath(path)) for path in paths if isinstance(path, str) and path)


def left_sentence(names: Iterable[str]) -> str:
    """Tell what is not carried over, for a warning: files by name, folders by how many files they have."""
    folders: Counter[str] = Counter()
    files = []
    for name in sorted(names):
        folder, slash, _ = name.partition("/")
        if slash:
            folders[folder] += 1
        else:
            files.append(name)
    said = [*files, *(f"{folder}/ ({count} file{'s' * (count > 1)})" for folder, count in sorted(folders.items()))]
    more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return f"not carried over from the source: {', '.join(said[:_NAMED])}{more}"
