"""How long one large layer takes, with statistics like those of text.

    python -m convert_attn.eval.benchmarks.conversion.layers --hidden 4096 --heads 32 --groups 8 --json layer.json

A layer of random weights is made and given to `subspace` with second moments in which one direction has half of the
energy and the others fall off like 1 / k, other ones for tokens, keys and values, and heads that look back over
different distances. Only the method is timed: neither reading nor writing, nor what the text itself takes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch

from convert_attn.convert.heap import keep_large_blocks
from convert_attn.convert.maths.moments import Moments
from convert_attn.convert.maths.rotary import RotaryPlanes, measured_offsets
from convert_attn.convert.methods.base import LayerContext
from convert_attn.convert.methods.subspace import METHOD
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.latent import LatentSizes
from convert_attn.eval.benchmarks.common import json_option
from convert_attn.eval.measures.environment import environment

_TURNED = 64  # directions about which the axes are reflected, so that no moment is diagonal
_LOOK = 1024  # tokens that heads are seen to look back


def _moments(hidden: int, seed: int) -> Moments:
    """Sizes like 1 / k, the first as large as all others together, on axes that are reflected."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 1.0 / torch.arange(1, hidden + 1, dtype=torch.float64)
    sizes[0] = sizes[1:].sum()
    sizes *= hidden / sizes.sum()
    axes = torch.linalg.qr(torch.randn(hidden, _TURNED, generator=generator, dtype=torch.float64))[0]
    turned = torch.diag(sizes) - 2 * axes @ (axes.T * sizes)
    second = turned - 2 * (turned @ axes) @ axes.T
    return Moments(second[0] * (0.5 / sizes[0].sqrt()), (second + second.T) / 2)


def made(hidden: int, heads: int, kv_heads: int) -> tuple[AttentionWeights, LayerContext]:
    """Make a layer with rotary position, stored in bfloat16 afterwards, and what a text would tell of it."""
    size, generator = hidden // heads, torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.02

    weights = AttentionWeights(
        q=drawn(heads, size, hidden),
        k=drawn(kv_heads, size, hidden),
        v=drawn(kv_heads, size, hidden),
        o=drawn(heads, hidden, size),
    )
    looks = torch.rand(heads, _LOOK, generator=generator) ** 4 / (1 + torch.arange(_LOOK))
    moments, keys, attended = (_moments(hidden, seed) for seed in (1, 2, 3))
    context = LayerContext(
        moments=moments,
        keys=keys,
        attended=attended,
        rotary=RotaryPlanes(1.0 / 10000 ** (torch.arange(0, size, 2).double() / size)),
        offsets=measured_offsets(looks, 4 * _LOOK, 0.01),
        generator=generator,
        epsilon=torch.finfo(torch.bfloat16).eps,
    )
    return weights, context


@click.command()
@click.option("--hidden", default=4096, show_default=True, help="D.")
@click.option("--heads", default=32, show_default=True, help="H.")
@click.option("--kv-heads", type=int, help="K [default: as many as heads].")
@click.option("--groups", type=int, help="GQA of so many heads ...")
@click.option("--rank", type=int, help="... or MLA with a latent of this size.")
@click.option("--rope-dim", default=64, show_default=True, help="MLA: the rotary key.")
@json_option
def main(
    *,
    hidden: int,
    heads: int,
    kv_heads: int | None,
    groups: int | None,
    rank: int | None,
    rope_dim: int,
    json_file: Path | None,
) -> None:
    """Time the conversion of one layer."""
    if (groups is None) == (rank is None):
        raise click.UsageError("give --groups or --rank")
    assert METHOD.share is not None
    assert METHOD.compress is not None
    kv_heads = heads if kv_heads is None else kv_heads
    keep_large_blocks()  # as a conversion does
    weights, context = made(hidden, heads, kv_heads)
    begin, before = time.perf_counter(), time.process_time()
    with torch.no_grad():
        if groups is not None:
            METHOD.share(weights, groups, context)
        else:
            METHOD.compress(weights, LatentSizes(rank or 0, rope_dim, None), context)
    seconds, processor = time.perf_counter() - begin, time.process_time() - before
    # kilobytes, but on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    form = f"GQA-{groups}" if groups is not None else f"MLA {rank} + {rope_dim}"
    row: dict[str, Any] = {
        "name": f"layer {hidden}, {heads} heads over {kv_heads}: {form}",
        "runs": 1,
        "seconds": seconds,
        "least": seconds,
        "most": seconds,
        "processor_seconds": processor,
        "peak_bytes": peak,
    }
    if json_file is not None:
        json_file.write_text(json.dumps({"environment": environment("cpu"), "rows": [row]}, indent=2) + "\n")
    click.echo(f"{row['name']}: {seconds:.1f} s, {processor:.1f} of the processor, peak {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
