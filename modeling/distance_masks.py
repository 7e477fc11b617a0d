"""Masks of a layer's own, by how far back a key is: windows and slopes.

Letters in shapes: B batch, H query heads, S new tokens, T tokens held as keys, d size of a head.
"""

import torch


def own_places(given: torch.Tensor | None, query: torch.Tensor, keys: int) -> torch.Tensor:
    """Where the new tokens stand among the keys, [1 or B, 1, S, 1]: a token is the last one that it sees.

    given: a boolean or additive mask [B, 1, S, T], or None where a token sees all before it; query: [B, H, S, d].
    """
    tokens, places = query.shape[-2], torch.arange(keys, device=query.device)
    if given is None:  # several tokens without a mask have nothing before them, one has all
        return (places[:tokens] if tokens > 1 else places[-1:])[None, None, :, None]
    seen = given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2
    return (seen * places).amax(-1, keepdim=True)


def near(given: torch.Tensor | None, query: torch.Tensor, keys: int, window: int) -> torch.Tensor:
    """Hide what lies further back than a window, and what comes later.

    given, query: as in `own_places`; window: how many tokens back a token sees, itself included.
    -> [1 or B, 1, S, T], of the given kind, additive for None.
    """
    back = own_places(given, query, keys) - torch.arange(keys, device=query.device)
    inside, lowest = back < window, torch.finfo(query.dtype).min
    if given is None:
        return torch.where(inside & (back >= 0), 0.0, lowest).to(query.dtype)
    return given & inside if given.dtype == torch.bool else given.masked_fill(~inside, lowest)


def with_slopes(given: torch.Tensor | None, query: torch.Tensor, keys: int, slopes: list[float]) -> torch.Tensor:
    """Take from scores a slope of each head's own per token of distance (ALiBi, arXiv:2108.12409), [B, H, S, T].

    given, query: as in `own_places`. Distances are from the new token: near keys lose least to rounding.
    """
    back = own_places(given, query, keys) - torch.arange(keys, device=query.device)
    steep = torch.tensor(slopes, dtype=torch.float32, device=query.device)[:, None, None]
    bias = (-steep * back).to(query.dtype)
    lowest = torch.finfo(query.dtype).min
    if given is None:
        return bias.masked_fill(back < 0, lowest)
    return bias.masked_fill(~given, lowest) if given.dtype == torch.bool else (bias + given).clamp(min=lowest)


__all__ = ["near", "own_places", "with_slopes"]
