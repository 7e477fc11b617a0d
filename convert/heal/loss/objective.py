"""What training minimises: distance to the original, or the text's own loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from convert_attn.convert.heal.loss.chunks import Score, rows_per_chunk, summed
from convert_attn.convert.heal.loss.halves import Halves, States
from convert_attn.convert.heal.state.settings import UPTRAIN, Settings
from convert_attn.convert.text.pair_windows import asked, both_sides, has_sides, trimmed

_NONE = -100  # what has no next token


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights of the parts of the loss.

    Attributes:
        kl: of T^2 KL(teacher || student) at temperature T, nats per token (Hinton et al., arXiv:1503.02531).
        hidden: of the squared error of each layer's output relative to its size, mean over layers.
        lm: of the loss on the text's next token, nats per token.
        last: of the squared error of the last hidden states relative to their size: what an encoder learns by, which
            has no next token.
    """

    kl: float = 0.0
    hidden: float = 0.0
    lm: float = 0.0
    temperature: float = 1.0
    last: float = 0.0

    @classmethod
    def of(cls, settings: Settings, teacher: Halves | None = None) -> Objective:
        """Of a run: distillation, or uptraining on the text alone (Ainslie et al., arXiv:2305.13245, section 2.1)."""
        if teacher is not None and teacher.encoder:
            return cls(hidden=settings.hidden_weight, last=1.0)
        if settings.whole == UPTRAIN:
            return cls(lm=1.0)
        return cls(kl=1.0, hidden=settings.hidden_weight, lm=settings.lm_weight, temperature=settings.temperature)

    @classmethod
    def measured(cls, teacher: Halves | None) -> Objective:
        """On selection text: KL at temperature 1 where there is a teacher, and the text's own loss."""
        if teacher is not None and teacher.encoder:
            return cls(last=1.0)
        return cls(kl=0.0 if teacher is None else 1.0, lm=1.0)

    @property
    def teaches(self) -> bool:
        """Whether the teacher is run."""
        return self.kl > 0 or self.hidden > 0 or self.last > 0

    def on_selection(self, kl: float, loss: float) -> float:
        """Tell what weights are chosen by: the loss without the part of hidden states, KL at temperature 1.

        Args:
            kl: of an encoder the error of its last hidden states.
        """
        return (kl if self.kl or self.last else 0.0) + self.lm * loss

    def parts(self, student: Any, teacher: Halves | None, tokens: Tensor) -> dict[str, Tensor]:
        """ "loss" and what it is made of, each a mean over the batch; logits are made a few tokens at a time.

        Args:
            student: a causal language model to which `attach` has been applied, as wrapped as it may be since.
            teacher: may be None where it is not needed.
            tokens: [B, T], or windows of pairs, of which a mean is over the tokens of targets that are predicted.
        """
        theirs, tokens = None, trimmed(tokens)
        if teacher is not None and self.teaches:
            with torch.no_grad():
                theirs = teacher.states(tokens, self.hidden > 0)
        found: dict[str, Tensor] = student(input_ids=tokens, scored=Scored(self, tokens, teacher, theirs))
        return found


@dataclass(frozen=True)
class Scored:
    """A batch whose losses are asked of a student in place of its logits.

    Attributes:
        tokens: [B, T].
        teacher, theirs: the original and its states for these tokens, None where it is not needed.
    """

    objective: Objective
    tokens: Tensor
    teacher: Halves | None
    theirs: States | None

    def losses(self, student: Halves) -> dict[str, Tensor]:
        """Give the objective's parts, and "loss", the one with gradients."""
        goal = self.objective
        ours = student.states(self.tokens, goal.hidden > 0)
        found, losses = dict[str, Tensor](), []
        rows = self._rows(ours.last)
        tokens, windows = len(rows), 0 if has_sides(self.tokens) else len(self.tokens)
        counts = {name: count for name, count in (("kl", tokens), ("lm", tokens - windows)) if getattr(goal, name) > 0}
        if counts:
            weights = [getattr(goal, name) * tokens / count for name, count in counts.items()]
            loss, sums = summed(
                self._score(student),
                rows,
                rows_per_chunk(student.vocabulary, self.tokens.device),
                torch.tensor(weights, device=self.tokens.device),
                student.parameters(),
            )
            losses.append(loss)
            found |= {name: total / counts[name] for name, total in zip(counts, sums, strict=True)}
        if ours.hidden is not None and self.theirs is not None and self.theirs.hidden is not None:
            error = hidden_error(*(tuple(map(self._rows, each)) for each in (ours.hidden, self.theirs.hidden)))
            losses.append(goal.hidden * error)
            found["hidden"] = error.detach()
        if goal.last > 0 and self.theirs is not None:
            error = hidden_error((ours.last, ours.last), (ours.last, self.theirs.last))
            losses.append(goal.last * error)
            found["last"] = error.detach()
        return found | {"loss": torch.stack(losses).sum()}

    def _rows(self, states: Tensor) -> Tensor:
        """States [B, T, D] as rows [n, D], of pairs those of tokens with a next one."""
        return states[asked(both_sides(self.tokens)[1])] if has_sides(self.tokens) else states.flatten(0, 1)

    def _targets(self) -> Tensor:
        """The next token of each row, [n]."""
        if not has_sides(self.tokens):
            return next_tokens(self.tokens)
        target = both_sides(self.tokens)[1]
        return target[:, 1:][asked(target)[:, :-1]]

    def _score(self, student: Halves) -> Score:
        """Rows of the student's states -> the parts of the loss that logits are needed for, summed."""
        goal, targets = self.objective, self._targets()
        theirs = None if self.theirs is None else self._rows(self.theirs.last)

        def score(rows: Tensor, first: int) -> Tensor:
            place = slice(first, first + len(rows))
            logits, sums = student.logits(rows), []
            if goal.kl > 0 and self.teacher is not None and theirs is not None:
                with torch.no_grad():
                    reference = self.teacher.logits(theirs[place])
                sums.append(divergence(reference, logits, goal.temperature))
            if goal.lm > 0:
                sums.append(next_token_loss(logits, targets[place]))
            return torch.stack(sums)

        return score


def predicted(windows: Tensor) -> int:
    """Tell how many tokens a mean over windows [B, T] is over: all, or of pairs those of targets with a next one."""
    return int(asked(both_sides(windows)[1]).sum()) if has_sides(windows) else windows.numel()


def attach(model: Any, encoder: bool = False) -> Halves:
    """Let a causal language model, or an encoder, answer `model(input_ids=..., scored=Scored(...))` with losses.

    The losses are its own forward's, so that whatever wraps the model (replicas, shards, adapters) is around them too.
    """
    halves, own = Halves(model, encoder), model.forward

    def forward(*args: Any, scored: Scored | None = None, **kwargs: Any) -> Any:
        return own(*args, **kwargs) if scored is None else scored.losses(halves)

    model.forward = forward
    return halves


def divergence(reference: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum T^2 KL(reference || logits) at temperature T over tokens, in nats; logits are [n, vocabulary].

    Only `logits` get gradients (Hinton et al., arXiv:1503.02531, section 2).
    """
    found: Tensor = _Divergence.apply(reference, logits, temperature)  # type: ignore[no-untyped-call]
    return found


class _Divergence(torch.autograd.Function):
    """Its gradient, T (softmax(logits) - softmax(reference)), is made where the numbers it needs are at hand."""

    @staticmethod
    def forward(ctx: Any, reference: Tensor, logits: Tensor, temperature: float) -> Tensor:
        theirs, ours = (_softened(part, temperature).log_softmax(-1) for part in (reference, logits))
        shares = theirs.exp()
        found = theirs.sub_(ours).mul_(shares).sum() * temperature**2
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(ours.exp_().sub_(shares).to(logits.dtype))
            ctx.temperature = temperature
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return None, (outer * ctx.temperature).to(gradient.dtype) * gradient, None


def _softened(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1 else logits.float() / temperature


def next_tokens(tokens: Tensor) -> Tensor:
    """Tell what `next_token_loss` wants of windows [B, T]: the tokens one further on, [B * T]; the last has none."""
    return F.pad(tokens[:, 1:], (0, 1), value=_NONE).flatten()


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Give negative log-likelihood of `next_tokens` [n], nats summed over them; logits [n, vocabulary]."""
    return F.cross_entropy(logits.float(), targets, ignore_index=_NONE, reduction="sum")


def hidden_error(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
    """Give squared error of every layer's output, relative to the teacher's own square; mean over layers."""
    errors = [
        (a.float() - b.float()).square().sum() / b.float().square().sum().clamp_min(1e-20)
        for a, b in zip(ours[1:], theirs[1:], strict=True)
    ]
    return torch.stack(errors).mean()
