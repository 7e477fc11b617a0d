"""Peak memory of a conversion: a checkpoint of random weights is made, and converted in a process of its own.

    python -m convert_attn.eval.benchmarks.memory --gigabytes 4
    python -m convert_attn.eval.benchmarks.memory --gigabytes 2 --calibration-tokens 32768

Prints the child's peak resident memory, what the interpreter with torch and transformers takes by itself, and the
largest layer. The claim: peak <= own + largest layer + 300 MB, whatever the checkpoint's size. With
--calibration-tokens the checkpoint is calibrated on that many random tokens and converted with a refit (--no-refit:
without), which takes the states of all tokens besides; no limit is claimed then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from convert_attn.convert.checkpoint.safetensors_format import TensorInfo
from convert_attn.convert.checkpoint.source import Origin, Source
from convert_attn.convert.checkpoint.writer import ShardWriter
from convert_attn.convert.planning.plan import make_plan
from convert_attn.convert.planning.request import Request
from convert_attn.convert.stored_numbers import tensor_bytes

_BASELINE = "import convert_attn, convert_attn.convert.cli, transformers.models.llama.modeling_llama"
_SHARD_BYTES = 1_000_000_000
_VOCABULARY = 32000


def random_llama(folder: Path, gigabytes: float, hidden: int = 2048) -> None:
    """Write a Llama-shaped bf16 checkpoint of about that size, shard by shard, without holding it."""
    heads, inner, vocabulary = hidden // 64, int(hidden * 8 / 3) // 64 * 64, _VOCABULARY
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden)}
    shapes |= {"self_attn.v_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden)}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    layer_numbers = 4 * hidden**2 + 3 * inner * hidden
    layers = max(1, round((gigabytes * 5e8 - 2 * vocabulary * hidden) / layer_numbers))
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        block = f"model.layers.{layer}."
        tensors |= {f"{block}{name}.weight": shape for name, shape in shapes.items()}
        tensors |= {f"{block}{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    tensors |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": layers,
        "max_position_embeddings": 4096,
        "vocab_size": vocabulary,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    _write_random(folder, tensors)


def _write_random(folder: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Normal weights of deviation 0.02, norms of one, in shards of about a gigabyte."""
    shards: dict[str, list[TensorInfo]] = {}
    used = 0
    for name, shape in tensors.items():
        info = TensorInfo(
            name=name, dtype="BF16", shape=shape, file=f"model-{used // _SHARD_BYTES + 1:05}.safetensors", offset=0
        )
        shards.setdefault(info.file, []).append(info)
        used += info.nbytes
    writer = ShardWriter(folder, shards, {})
    generator = torch.Generator().manual_seed(0)
    for infos in shards.values():
        for info in infos:
            if len(info.shape) == 1:
                values = torch.ones(info.shape)
            else:
                values = torch.randn(info.shape, generator=generator) * 0.02
            writer.put(info.name, [tensor_bytes(values.to(torch.bfloat16))])
    writer.close()


_PEAK = """
import pathlib, resource, sys
status = pathlib.Path("/proc/self/status")
if status.exists():
    print(next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


def peak_of(code: str) -> tuple[float, float]:
    """Give peak resident bytes and seconds of `python -c code`.

    On Linux from VmHWM: getrusage's figure is inherited from the process that started this one.
    """
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + "\n" + _PEAK], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) * 1024, time.perf_counter() - begin


def largest_layer(folder: Path) -> int:
    """Give bytes of the largest decoder block, or of the largest tensor outside the blocks."""
    plan = make_plan(Source.open(Origin(name=str(folder), folder=folder)), Request(to="mqa"))
    sizes: dict[str, int] = {}
    for output in plan.outputs:
        key = output.source if output.layer is None else str(output.layer)
        sizes[key] = sizes.get(key, 0) + plan.source.weights.infos[output.source].nbytes
    return max(sizes.values())


@click.command()
@click.option("--gigabytes", default=4.0, show_default=True, help="Size of the checkpoint to make.")
@click.option("--groups", default=8, show_default=True)
@click.option("--method", default="subspace", show_default=True)
@click.option("--calibration-tokens", type=int, help="Calibrate on so many random tokens, in windows of 2048.")
@click.option("--refit/--no-refit", default=True, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work [default: a temporary folder].")
def main(
    *, gigabytes: float, groups: int, method: str, calibration_tokens: int | None, refit: bool, folder: Path | None
) -> None:
    """Measure the peak memory of a conversion."""
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        source, output = Path(directory) / "source", Path(directory) / "output"
        random_llama(source, gigabytes)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        own, _ = peak_of(_BASELINE)
        options: dict[str, Any] = {"to": "gqa", "groups": groups, "method": method, "output": str(output)}
        environment = ""
        if calibration_tokens is not None:
            tokens = Path(directory) / "tokens.npy"
            count = max(1, calibration_tokens // 2048)
            np.save(tokens, np.random.default_rng(0).integers(0, _VOCABULARY, (count, 2048)))
            options |= {"calibration": str(tokens), "refit": refit}
            environment = f"import os; os.environ['CONVERT_ATTN_CACHE'] = {directory!r}; "
        call = f"convert({str(source)!r}, **{options!r})"
        peak, seconds = peak_of(f"{environment}from convert_attn import convert; {call}")
        layer = largest_layer(source)
        result = {
            "checkpoint_mb": size / 1e6,
            "largest_layer_mb": layer / 1e6,
            "interpreter_mb": own / 1e6,
            "peak_mb": peak / 1e6,
            "peak_above_interpreter_and_layer_mb": (peak - own - layer) / 1e6,
            "seconds": seconds,
        }
        result |= {"limit_mb": 300.0} if calibration_tokens is None else {"calibration_tokens": count * 2048}
    click.echo(json.dumps({key: round(value, 1) for key, value in result.items()}, indent=2))


if __name__ == "__main__":
    main()
