"""Losses a few tokens at a time are those of whole logits: values, gradients, every class, whatever wraps the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import KINDS, tiny_model
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from convert_attn.convert.heal.loss import objective
from convert_attn.convert.heal.loss.chunks import rows_per_chunk
from convert_attn.convert.heal.loss.halves import Halves
from convert_attn.convert.heal.loss.objective import Objective, attach
from convert_attn.convert.heal.state.pair import without_dropout
from convert_attn.convert.heal.training.loop import checkpoint_activations

GOAL = Objective(kl=1.0, hidden=0.3, lm=0.7, temperature=2.0)
# classes that do something of their own to logits, or to states on their way to the head
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 2.0, "num_key_value_heads": 8, "head_dim": 8},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "phi": {},
    "gpt_bigcode": {},
    "llama": {"tie_word_embeddings": True},
}


def _model(model_type: str, seed: int) -> Any:
    if model_type not in SPECIAL:
        return tiny_model(model_type, seed=seed)
    options: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 97}
    options |= {"intermediate_size": 96, "max_position_embeddings": 64, "pad_token_id": None} | SPECIAL[model_type]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    without_dropout(model)
    return model


def _whole(student: Any, teacher: Any, tokens: torch.Tensor, goal: Objective) -> dict[str, torch.Tensor]:
    """The same losses from whole logits, written down anew."""
    ours = student(input_ids=tokens, use_cache=False, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(input_ids=tokens, use_cache=False, output_hidden_states=True)
    p, q = ((out.logits.double() / goal.temperature).log_softmax(-1) for out in (theirs, ours))
    found = {"kl": (p.exp() * (p - q)).sum(-1).mean() * goal.temperature**2}
    pairs = zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True)
    found["hidden"] = torch.stack([(a - b).square().sum() / b.square().sum() for a, b in pairs]).mean()
    found["lm"] = F.cross_entropy(ours.logits[:, :-1].flatten(0, 1).double(), tokens[:, 1:].flatten())
    return found | {"loss": goal.kl * found["kl"] + goal.hidden * found["hidden"] + goal.lm * found["lm"]}


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("size", [5, 16, 1000])
@pytest.mark.parametrize("model_type", sorted({*KINDS, *SPECIAL}))
def test_chunks_give_the_values_and_gradients_of_whole_logits(
    model_type: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "rows_per_chunk", lambda *_: size)
    student, teacher = _model(model_type, 0), _model(model_type, 1)
    tokens = torch.randint(1, 97, (3, 13))
    wanted = _whole(student, teacher, tokens, GOAL)
    wanted["loss"].backward()
    expected = _gradients(student)
    halves, theirs = attach(student), Halves(teacher)
    for tried in (halves, theirs):
        tried.try_out(tokens)
        assert not tried.whole
    found = GOAL.parts(student, theirs, tokens)
    (3 * found["loss"]).backward()  # what is around the loss is around its gradients
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-6, atol=1e-6)
    gradients = _gradients(student)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        # a norm on keys has a gradient of parts that cancel: all heads and tokens are summed, in float32
        bound = (4e-6 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1e-6) * float(gradient.abs().max())
        torch.testing.assert_close(gradients[name] / 3, gradient, rtol=1e-6, atol=max(bound, 1e-8), msg=name)
    assert student(input_ids=tokens).logits.shape == (3, 13, 97)  # asked for logits it is what it was


def test_a_class_that_does_not_come_apart_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "rows_per_chunk", lambda *_: 7)
    student, teacher = _model("llama", 0), _model("llama", 1)
    own = student.forward

    def odd(*args: Any, **kwargs: Any) -> Any:  # what it adds depends on all tokens: no chunk has that
        out = own(*args, **kwargs)
        out.logits = out.logits + out.logits.mean(1, keepdim=True)
        return out

    student.forward = odd
    tokens = torch.randint(1, 97, (3, 13))
    wanted = _whole(student, teacher, tokens, GOAL)
    wanted["loss"].backward()
    expected = _gradients(student)
    halves = attach(student)
    halves.try_out(tokens)
    assert halves.whole
    found = GOAL.parts(student, Halves(teacher), tokens)
    found["loss"].backward()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-6, atol=1e-6)
    for name, gradient in _gradients(student).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_what_is_frozen_gets_no_gradient_and_measuring_makes_none() -> None:
    student, teacher = _model("llama", 0), Halves(_model("llama", 1))
    student.requires_grad_(False)
    student.model.norm.weight.requires_grad_(True)
    attach(student)
    tokens = torch.randint(1, 97, (3, 13))
    Objective(kl=1.0).parts(student, teacher, tokens)["loss"].backward()
    assert _gradients(student).keys() == {"model.norm.weight"}
    with torch.no_grad():
        assert not Objective.measured(teacher).parts(student, teacher, tokens)["loss"].requires_grad


def test_activations_computed_again_and_half_precision_give_the_same() -> None:
    student, teacher = _model("llama", 0).train(), Halves(_model("llama", 1))
    attach(student)
    tokens = torch.randint(1, 97, (3, 13))
    GOAL.parts(student, teacher, tokens)["loss"].backward()
    expected = _gradients(student)
    with torch.autocast("cpu", torch.bfloat16):
        loss = GOAL.parts(student, teacher, tokens)["loss"]
    loss.backward()
    for name, gradient in _gradients(student).items():
        assert gradient.dtype == torch.float32
        assert float((gradient - expected[name]).norm()) < 0.1 * float(expected[name].norm())
    checkpoint_activations(student)
    GOAL.parts(student, teacher, tokens)["loss"].backward()
    for name, gradient in _gradients(student).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


def test_logits_of_a_chunk_are_few_however_many_words_there_are() -> None:
    for vocabulary in (97, 32_000, 256_000):
        numbers = rows_per_chunk(vocabulary, torch.device("cpu")) * vocabulary
        assert 2**22 < numbers <= 2**23
