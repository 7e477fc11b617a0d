"""What a conversion found on its way, for those who tell of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from convert_attn.convert.fitting.measure import Measured
from convert_attn.convert.fitting.similarity import Similarity


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a conversion found on its way.

    Attributes:
        tokens: of calibration text, 0 without.
        measured: original and result, or a few words on why they were not compared.
    """

    tokens: int = 0
    measured: Measured | Similarity | str = "not asked for"

    @property
    def quality(self) -> dict[str, Any] | None:
        """For machines; None where nothing was measured."""
        return None if isinstance(self.measured, str) else asdict(self.measured)


UNMEASURED = Made()
Report = Callable[[], Measured | Similarity | str]
"""Gives what was measured, or a sentence on why nothing was."""
