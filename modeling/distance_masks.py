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


def seen_by(given: torch.Tensor | None, query: torch.Tensor, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tell what tokens see, and how far ahead of each token a key is.

    given: a boolean or additive mask [B, 1, S, T], or None where a token sees all before it; query: [B, H, S, d];
    keys: T.
    -> twice [1 or B, 1, S, T]: True where a token looks, and the place of a key less the token's.
    """
    ahead = torch.arange(keys, device=query.device) - own_places(given, query, keys)
    if given is None:
        return ahead <= 0, ahead
    return given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2, ahead


def lessened(given: torch.Tensor | None, query: torch.Tensor, lost: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Make an additive mask [1 or B, H, S, T] of what scores lose.

    given, query: as in `own_places`; lost: [1 or B, H, S, T] what is added; seen: as of `seen_by`.
    """
    lowest, lost = torch.finfo(query.dtype).min, lost.to(query.dtype)
    if given is not None and given.dtype != torch.bool:
        lost = lost + given.clamp_min(lowest / 2)
    return lost.masked_fill(~seen, lowest)


def with_slopes(given: torch.Tensor | None, query: torch.Tensor, keys: int, slopes: list[float]) -> torch.Tensor:
    """Take from scores a slope of each head's own per token of distance (ALiBi, arXiv:2108.12409), [B, H, S, T].

    given, query: as in `own_places`. Distances are from the new token: near keys lose least to rounding.
    """
    seen, ahead = seen_by(given, query, keys)
    steep = torch.tensor(slopes, dtype=torch.float32, device=query.device)[:, None, None]
    return lessened(given, query, steep * ahead, seen)


__all__ = ["lessened", "near", "own_places", "seen_by", "with_slopes"]
