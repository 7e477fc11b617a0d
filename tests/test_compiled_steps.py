"""Decode steps in static caches, compiled into one graph: encoder-decoders and encoders, by discovery.

Language models of ours are in test_cache_names.py, every one of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import ENCODERS, SEQ2SEQ, source_of, tiny_model
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache, StaticCache

from convert_attn import modeling
from convert_attn.eval.measures.decoding import with_cache

TWO_STACKS = [name for name in SEQ2SEQ if name in modeling.FAMILIES]
ONE_STACK = [name for name in ENCODERS if name in modeling.FAMILIES]
BATCHES = [1, 4, 16]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def chosen(families: list[str], slow: bool, kinds: int) -> list[tuple[str, int]]:
    """Families and batch sizes, which take turns; without --slow the last of so many parts of the families."""
    few = families[:: max(1, len(families) // kinds)]
    return [(family, BATCHES[number % len(BATCHES)]) for number, family in enumerate(families if slow else few)]


@torch.no_grad()
def test_a_step_of_a_decoder_with_an_encoder(slow: bool) -> None:
    assert TWO_STACKS
    for family, batch in chosen(TWO_STACKS, slow, 2):
        model = tiny_model(family, 2)
        ids = torch.randint(3, 90, (batch, 7), generator=torch.Generator().manual_seed(1))
        source = source_of(model, ids)
        encoded = model.get_encoder()(**source)
        expected = model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits[:, -1:]
        decoder = model.config.get_text_config(decoder=True)
        cache = EncoderDecoderCache(StaticCache(decoder, 8), StaticCache(decoder, encoded[0].shape[1]))
        held = with_cache(model, cache)
        model(encoder_outputs=encoded, decoder_input_ids=ids[:, :-1], **held)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        step = compiled(encoder_outputs=encoded, decoder_input_ids=ids[:, -1:], **held)
        close(step.logits, expected)


@torch.no_grad()
def test_an_encoder(slow: bool) -> None:
    assert ONE_STACK
    for family, batch in chosen(ONE_STACK, slow, 1):
        model = tiny_model(family, 2)
        ids = torch.randint(3, 90, (batch, 7), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        found, expected = compiled(ids, attention_mask=mask), model(ids, attention_mask=mask)
        close(found.logits[mask.bool()], expected.logits[mask.bool()])
