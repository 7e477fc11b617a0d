"""Which texts a run of `heal` reads, and in what shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import UsageError
from convert_attn.convert.text.windows import SELF, check_calibration


@dataclass(frozen=True)
class Texts:
    """What is read.

    Attributes:
        data, data_weights: to train on, and in what shares.
        exclude: what is left out of it.
    """

    data: tuple[str, ...]
    data_weights: tuple[int, ...]
    exclude: str | None

    @classmethod
    def of(
        cls, data: str | Path | Sequence[str | Path], weights: Sequence[int] | None, exclude: str | Path | None
    ) -> Texts:
        """As given to `heal`.

        Raises:
            UsageError: a text that is not there, or weights that are not theirs.
        """
        found = (str(data),) if isinstance(data, str | Path) else tuple(str(text) for text in data)
        if not found:
            raise UsageError("--data is missing: give a text to train on")
        if SELF in found:
            raise UsageError("--data self: a model that has lost quality is no teacher; give a text file or a dataset")
        shares = tuple(weights) if weights else (1,) * len(found)
        if len(shares) != len(found) or min(shares) < 1:
            raise UsageError(
                f"--data-weights is '{','.join(map(str, shares))}' for {len(found)} --data: give a whole number of at "
                "least 1 for each"
            )
        common = math.gcd(*shares)
        shares = tuple(share // common for share in shares)
        for text in found if exclude is None else (*found, str(exclude)):
            check_calibration(text)
        return cls(found, shares, None if exclude is None else str(exclude))

    def named(self) -> str:
        """For the result: files without their folders."""
        names = ["the text that comes with convert-attn" if text == "sample" else Path(text).name for text in self.data]
        if len(names) == 1:
            return names[0]
        shares = zip(names, self.data_weights, strict=True)
        return ", ".join(f"{name} ({weight}/{sum(self.data_weights)})" for name, weight in shares)

    def identity(self) -> dict[str, Any]:
        """Tell what a run that goes on must share with the one that was broken off, as JSON gives it back."""
        return {"data": [*self.data], "data_weights": [*self.data_weights], "exclude": self.exclude}
