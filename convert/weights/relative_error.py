"""What an error of a state counts: relative to the residual stream, so that no token counts more than others.

The first token's state is a hundred times as large as others in many models: by size alone it would be all that counts.
"""

from __future__ import annotations

from torch import Tensor


def relative_error(error: Tensor, stream: Tensor) -> Tensor:
    """Bound squared errors by the stream, or by themselves where they are larger: at most 1 for a token.

    Args:
        error, stream: squares summed over D, of one shape. Gradients go through the error alone, as if its bound stood.
    """
    return error / (stream + error.detach()).clamp_min(1e-30)
