"""What training minimises: distance to the original, or the text's own loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convert_attn.convert.heal.settings import UPTRAIN, Settings


@dataclass(frozen=True)
class Objective:
    """Weights of the parts of the loss.

    Attributes:
        kl: of T^2 KL(teacher || student) at temperature T, nats per token (Hinton et al., arXiv:1503.02531).
        hidden: of the squared error of each layer's output relative to its size, mean over layers.
        lm: of the loss on the text's next token, nats per token.
    """

    kl: float
    hidden: float
    lm: float
    temperature: float = 1.0

    @classmethod
    def of(cls, settings: Settings) -> Objective:
        """Of a run: distillation, or uptraining on the text alone (Ainslie et al., arXiv:2305.13245, section 2.1)."""
        if settings.whole == UPTRAIN:
            return cls(0.0, 0.0, 1.0)
        return cls(1.0, settings.hidden_weight, settings.lm_weight, settings.temperature)

    @property
    def teaches(self) -> bool:
        """Whether the teacher is run."""
        return self.kl > 0 or self.hidden > 0

    def on_selection(self, kl: float, loss: float) -> float:
        """What weights are chosen by: the loss without the part of hidden states, KL at temperature 1."""
        return (kl if self.kl else 0.0) + self.lm * loss

    def parts(self, student: Any, teacher: Any | None, tokens: Tensor) -> dict[str, Tensor]:
        """ "loss" and what it is made of, each a mean over the batch.

        Args:
            student, teacher: causal language models; the teacher may be None where it is not needed.
            tokens: [B, T].
        """
        asked = {"input_ids": tokens, "use_cache": False, "output_hidden_states": self.hidden > 0}
        ours = student(**asked)
        theirs = None
        if teacher is not None and self.teaches:
            with torch.no_grad():
                theirs = teacher(**asked)
        found: dict[str, Tensor] = {}
        if self.kl > 0 and theirs is not None:
            found["kl"] = divergence(theirs.logits, ours.logits, self.temperature)
        if self.hidden > 0 and theirs is not None:
            found["hidden"] = hidden_error(ours.hidden_states, theirs.hidden_states)
        if self.lm > 0:
            found["lm"] = next_token_loss(ours.logits, tokens)
        return found | {"loss": torch.stack([getattr(self, name) * value for name, value in found.items()]).sum()}


def divergence(reference: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(reference || logits) at temperature T, nats per token; logits [B, T, vocabulary]."""
    theirs = (reference.flatten(0, 1).float() / temperature).log_softmax(-1)
    ours = (logits.flatten(0, 1).float() / temperature).log_softmax(-1)
    return F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood of tokens [B, T] but the first, nats."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def hidden_error(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
    """Squared error of every layer's output, relative to the teacher's own square; mean over layers."""
    errors = [
        (a.float() - b.float()).square().sum() / b.float().square().sum().clamp_min(1e-20)
        for a, b in zip(ours[1:], theirs[1:], strict=True)
    ]
    return torch.stack(errors).mean()
