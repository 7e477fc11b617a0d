"""What a conversion costs an encoder: how alike the embeddings of a text are, by original and by result."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from convert_attn.convert.fitting.measure import HeldOut, estimate

_LOSSY, _RUIN = 0.95, 0.8  # below them a sentence says so


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Original and result on held-out text, in float32 arithmetic with the result's weights as stored.

    Attributes:
        text: what it was measured on.
        windows, length: how many texts of how many tokens.
        cosine: of both embeddings of a text, each the mean of its last hidden states.
        least: that of the text on which they differ most.
    """

    text: str
    windows: int
    length: int
    cosine: HeldOut
    least: float

    @property
    def is_ruin(self) -> bool:
        """Whether nobody would use it as it is."""
        return self.cosine.mean < _RUIN

    @property
    def is_lossy(self) -> bool:
        """Whether the loss wants a remedy."""
        return self.cosine.mean < _LOSSY


def compare_embeddings(original: Tensor, converted: Tensor, text: str) -> Similarity:
    """Compare two runs over the same texts.

    Args:
        original, converted: [N, T, D] last hidden states; no token is padding.
        text: what to call it.
    """
    found = cosine_similarity(original.double().mean(1), converted.double().mean(1), dim=-1)
    return Similarity(
        text=text,
        windows=len(original),
        length=original.shape[1],
        cosine=estimate(found.tolist()),
        least=float(found.min()),
    )
