"""Self-checks do not refuse what is right: rounding, sizes of what a norm gives, contexts of few tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import edit_tensors, save_tiny

from convert_attn import convert, verify


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_that_is_small_beside_what_the_conversion_costs_is_allowed(tmp_path: Path, dtype: str) -> None:
    """Prescribed frequencies fit random weights badly: 12 times the source's own rounding is less than theirs."""
    source = save_tiny(tmp_path / "in", "llama")
    made = convert(source, to="mla", cache_ratio=0.5, layout="native", dtype=dtype, output=tmp_path / "out")
    assert made.verified is not None
    assert 0 < max(made.verified.figures["block_errors_stored"].values()) < 0.1


def test_a_latent_is_asked_with_numbers_of_the_size_that_the_norm_gives(tmp_path: Path) -> None:
    """A norm with small gains has large weights behind it, whose scores on larger numbers rounding would decide."""

    def unequal(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "input_layernorm" in name:
                tensor.fill_(0.025)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                tensor.mul_(40)

    source = edit_tensors(save_tiny(tmp_path / "in", "llama"), unequal)
    made = convert(source, to="mla", cache_ratio=0.5, layout="custom", dtype="bfloat16", output=tmp_path / "out").output
    assert max(verify(made).figures["block_errors_stored"].values()) < 0.02


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_context_shorter_than_the_probe_is_no_fault(tmp_path: Path, context: int) -> None:
    source = save_tiny(tmp_path / "in", max_position_embeddings=context)
    made = convert(source, to="gqa", groups=2, output=tmp_path / "out")
    assert made.verified is not None
    assert made.verified.figures["cached_numbers"] == [32.0, 32.0]
