"""Memory: bytes that the cache takes per token, measured on the cache itself, and the peak of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.text.sounds import sounds_of
from convert_attn.eval.measures.contenders import Recipe
from convert_attn.eval.measures.decoding import cache_layers, cache_of, continuing, reading

_SHORT, _LONG = 8, 24  # tokens; the difference leaves out what does not grow


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def cache_nbytes(cache: Any) -> int:
    """Give bytes of all tensors that a transformers cache holds in its layers, views counted once."""
    found = [tensor for layer in cache_layers(cache) for value in vars(layer).values() for tensor in _tensors(value)]
    return sum({(t.data_ptr(), t.nbytes): t.nbytes for t in found if t.nbytes}.values())


@torch.inference_mode()
def cache_bytes_per_token(model: Any) -> float:
    """Tell what one more token adds to the cache of one sequence, over all layers, measured.

    Of an encoder-decoder: one more of the target and one more of the source.
    """
    sizes = []
    for length in (_SHORT, _LONG):
        tokens = torch.zeros(1, length, dtype=torch.int64, device=model.device)
        sizes.append(cache_nbytes(cache_of(model(**reading(model, tokens), use_cache=True))))
    own = (sizes[1] - sizes[0]) / (_LONG - _SHORT)
    return own if sounds_of(model) is None else own + source_bytes_per_token(model)


@torch.inference_mode()
def source_bytes_per_token(model: Any) -> float:
    """Tell what one more token of the source adds to the cache of an encoder-decoder, over all layers, measured.

    Of one that reads sounds: a state of the encoder, of which all sounds have as many.
    """
    sounds = sounds_of(model)
    if sounds is not None:
        tokens = torch.zeros(1, _SHORT, dtype=torch.int64, device=model.device)
        cache = cache_of(model(**reading(model, tokens), use_cache=True))
        return cache_nbytes(cache.cross_attention_cache) / sounds.states
    sizes, written = [], torch.zeros(1, _SHORT, dtype=torch.int64, device=model.device)
    for length in (_SHORT, _LONG):
        tokens = torch.zeros(1, length, dtype=torch.int64, device=model.device)
        made = model(**reading(model, tokens, written), use_cache=True)
        sizes.append(cache_nbytes(cache_of(made)))
    return (sizes[1] - sizes[0]) / (_LONG - _SHORT)


@torch.inference_mode()
def _run(recipe: Recipe, context: int, batch: int) -> None:
    model = recipe.build()
    tokens = torch.zeros(batch, context, dtype=torch.int64, device=model.device)
    made = model(**reading(model, tokens[:, :-1]), use_cache=True)
    model(**continuing(model, made, tokens[:, -1:]), use_cache=True)


def _status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status, None where there is no such file."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    lines = path.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _child(recipe: Recipe, context: int, batch: int) -> dict[str, Any]:
    """In a process of its own: what it takes before the model, and at most."""
    before = _status("VmRSS")
    device = torch.device(recipe.device)
    _run(recipe, context, batch)
    if device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(device), "before_bytes": 0, "kind": "GPU, allocated"}
    return {"peak_bytes": _status("VmHWM"), "before_bytes": before, "kind": "process, resident"}


def peak_memory(recipe: Recipe, context: int, batch: int) -> dict[str, Any]:
    """Give peak memory of a process that loads a model, prefills `context` tokens and decodes one.

    Returns:
        `peak_bytes` and `before_bytes` (Python with its libraries, before the model; 0 on a GPU), None where the
        system does not tell; `kind`, `context`, `batch_size`.

    Raises:
        ConvertAttnError: the process failed, for example for want of memory.
    """
    request = json.dumps({"recipe": asdict(recipe), "context": context, "batch": batch})
    code = "from convert_attn.eval.measures.memory import main; main()"
    done = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConvertAttnError(f"measuring the peak memory of '{recipe.model}' failed: {reason}")
    measured = dict(json.loads(done.stdout.splitlines()[-1]))
    return measured | {"context": context, "batch_size": batch}


def main() -> None:
    """The child of `peak_memory`: a request on stdin, figures on stdout."""
    import transformers

    transformers.logging.set_verbosity_error()
    request = json.loads(sys.stdin.read())
    measured = _child(Recipe(**request["recipe"]), request["context"], request["batch"])
    sys.stdout.write(json.dumps(measured) + "\n")
