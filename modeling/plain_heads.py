"""Heads that several families put on a base model in the same way, for models that make their own parts.

Each comes before the family's other bases, and gives `add_head`.
"""

from typing import Any

from torch import nn


class LanguageHead:
    """One map without a bias, which may be the token embedding."""

    def add_head(self, config: Any) -> None:
        """Make the head."""
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class SequenceHead:
    """One label for a text, read at its last token."""

    def add_head(self, config: Any) -> None:
        """Make the head."""
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)


class TokenHead:
    """One label for each token; the dropout is under either of two names that configs carry, or 0.1."""

    def add_head(self, config: Any) -> None:
        """Make the head."""
        shares = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.num_labels = config.num_labels
        self.dropout = nn.Dropout(next((float(share) for share in shares if share is not None), 0.1))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)


__all__ = ["LanguageHead", "SequenceHead", "TokenHead"]
