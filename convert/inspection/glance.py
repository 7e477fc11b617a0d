"""What config.json and the headers of a local folder say, in one line, before anything large is imported.

Only headers are checked here and no class is asked: whoever looks closely says what is wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from convert_attn.convert.checkpoint.files import own_file, read_json
from convert_attn.convert.checkpoint.safetensors_format import read_header
from convert_attn.convert.errors import ConvertAttnError

# what is told, and the keys that families have for it
_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    "hidden size": ("hidden_size", "n_embd", "d_model"),
    "query heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    "K/V heads": ("num_key_value_heads", "num_kv_heads"),
}


def glance(folder: Path) -> str | None:
    """Tell what a checkpoint folder says of itself, None where it cannot be read so simply."""
    try:
        config = read_json(own_file(folder, "config.json"))
        return f"{_of_config(config)}{_of_headers(folder)}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, ConvertAttnError):
        return None


def _of_config(config: dict[str, Any]) -> str:
    classes = ", ".join(map(str, config.get("architectures") or []))
    within = config.get("text_config")
    numbers = {**config, **within} if isinstance(within, dict) else config
    told = []
    for what, keys in _KEYS.items():
        found = next((numbers[key] for key in keys if isinstance(numbers.get(key), int)), None)
        told += [] if found is None else [f"{what} {found:,}"]
    return f"{config['model_type']}{f' ({classes})' if classes else ''}: {', '.join(told)}"


def _of_headers(folder: Path) -> str:
    """Tensors, parameters, dtypes and bytes; nothing where there are no safetensors."""
    tensors, nbytes, numbers = 0, 0, Counter[str]()
    for path in sorted(folder.glob("model*.safetensors")):
        for info in read_header(own_file(folder, path.name))[0]:
            tensors, nbytes = tensors + 1, nbytes + info.nbytes
            numbers[info.dtype] += math.prod(info.shape)
    if not tensors:
        return ""
    dtypes = ", ".join(dtype for dtype, _ in numbers.most_common())
    return f"; {tensors:,} tensors, {numbers.total():,} parameters ({dtypes}), {nbytes / 1e9:,.2f} GB"
