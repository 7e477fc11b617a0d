"""The settings of a cache of fixed length, for the configurations beside this file."""

from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True, repr=False)  # transformers prints configurations its own way
class LatentSequenceFields:
    """How many tokens the cache keeps as they are, and in how many slots the others are merged.

    cache_slots: of them for each key/value head; fewer than 8 would not hold the shortest texts exactly.
    cache_window: the last tokens; 0: as many as there are slots.
    cache_sinks: the first tokens.
    cache_merging: for each layer the two shares of slot_merging.MergeRule; None: all zero.
    """

    cache_slots: int = 256
    cache_window: int = 0
    cache_sinks: int = 4
    cache_merging: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]  # that of the configuration this is mixed into
        self.cache_window = self.cache_window or self.cache_slots
        if self.cache_slots < 1 or self.cache_window < 1 or self.cache_sinks < 0:
            raise ValueError(
                "cache_slots and cache_window must be at least 1 and cache_sinks at least 0, got "
                f"{self.cache_slots}, {self.cache_window} and {self.cache_sinks}"
            )
        rules, layers = self.cache_merging, self.num_hidden_layers  # type: ignore[attr-defined]  # as above
        if rules is not None and (len(rules) != layers or any(len(rule) != 2 for rule in rules)):
            raise ValueError(f"cache_merging must have two shares for each of {layers} layers, got {rules}")


__all__ = ["LatentSequenceFields"]
