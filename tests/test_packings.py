"""Ways to store q, k and v: taken apart and joined bit for bit, and apart as the classes of transformers do it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import FalconConfig
from transformers.models.falcon.modeling_falcon import FalconAttention

from convert_attn.convert.archs.packings import FusedBlocks, FusedGroups, FusedHeads, FusedShards, Packing, Separate

H, D_HEAD, D = 8, 4, 12
PACKINGS: dict[str, Packing] = {
    "separate": Separate("q", "k", "v"),
    "blocks": FusedBlocks("qkv"),
    "groups": FusedGroups("qkv"),
    "heads": FusedHeads("qkv"),
    "shards": FusedShards("qkv"),
}
packings = pytest.mark.parametrize("name", PACKINGS)
shared = pytest.mark.parametrize("kv_heads", [1, 2, 8])


def heads(count: int, *more: int) -> Tensor:
    return torch.randn(count, D_HEAD, *more)


@packings
@shared
@pytest.mark.parametrize("more", [(), (D,)], ids=["bias", "weight"])
def test_what_is_joined_comes_apart_again(name: str, kv_heads: int, more: tuple[int, ...]) -> None:
    packing = PACKINGS[name]
    if name == "heads":
        kv_heads = H
    parts = heads(H, *more), heads(kv_heads, *more), heads(kv_heads, *more)
    stored = packing.join(parts)
    rows = {key: len(value) for key, value in stored.items()}
    assert rows == packing.rows(H, kv_heads, D_HEAD)
    assert packing.kv_heads(rows, H, D_HEAD) == kv_heads
    assert set(packing.roles.values()) == set(stored)
    for part, found in zip(parts, packing.split(stored, H, kv_heads), strict=True):
        assert found is not None
        assert torch.equal(part, found)


@packings
def test_what_is_not_there_has_no_heads(name: str) -> None:
    packing = PACKINGS[name]
    assert packing.split({}, H, H) == (None, None, None)
    assert packing.join((None, None, None)) == {}


def test_one_tensor_cannot_have_a_bias_for_some() -> None:
    with pytest.raises(ValueError, match="all of them have a bias, or none"):
        FusedBlocks("qkv").join((heads(H), None, heads(H)))
    assert set(Separate("q", "k", "v").join((heads(H), None, heads(H)))) == {"q", "v"}


def test_rows_of_no_number_of_heads_are_none() -> None:
    assert PACKINGS["blocks"].kv_heads({"qkv": (H + 3) * D_HEAD}, H, D_HEAD) % 1
    assert PACKINGS["heads"].kv_heads({"qkv": (H + 2) * D_HEAD}, H, D_HEAD) < 1


@pytest.mark.parametrize(("name", "kv_heads"), [("groups", 2), ("heads", H), ("blocks", 1)])
def test_classes_take_it_apart_the_same_way(name: str, kv_heads: int) -> None:
    config = FalconConfig(
        hidden_size=H * D_HEAD,
        num_attention_heads=H,
        num_kv_heads=kv_heads,
        new_decoder_architecture=name == "groups",
        multi_query=name == "blocks",
    )
    attention = FalconAttention(config, layer_idx=0)
    weight = torch.randn((H + 2 * kv_heads) * D_HEAD, H * D_HEAD)
    x = torch.randn(1, 5, H * D_HEAD)
    theirs = attention._split_heads(x @ weight.T)  # [B, T, heads, d] each; K and V once for each query head, or once
    ours = PACKINGS[name].split({"qkv": weight}, H, kv_heads)
    for part, states in zip(ours, theirs, strict=True):
        assert part is not None
        made = torch.einsum("btD,hdD->bthd", x, part)
        torch.testing.assert_close(made.repeat_interleave(states.shape[2] // made.shape[2], 2), states)
