"""One evaluation under way: what has been checked and chosen, the models in memory, the results so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convert_attn.convert.progress import Progress
from convert_attn.eval.measures.contenders import Contender
from convert_attn.eval.measures.passages import Passages
from convert_attn.eval.results.store import Store
from convert_attn.eval.tasks.harness import Harness


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that has been checked and chosen."""

    contenders: tuple[Contender, ...]
    timed: tuple[Contender, ...]
    passages: Passages | None
    text: str
    harness: Harness | None
    limit: float | None
    num_fewshot: int | None
    task_batch_size: int | None
    contexts: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    repeats: int
    scale: str | None
    store: Store
    progress: Progress
    loaded: dict[str, Any] = field(default_factory=dict)

    def model(self, contender: Contender) -> Any:
        """Give the model, loaded; of the others only the original stays."""
        key = repr(contender.recipe)
        if key not in self.loaded:
            keep = {repr(self.contenders[0].recipe), repr(self.timed[0].recipe)}
            for other in [other for other in self.loaded if other not in keep]:
                del self.loaded[other]
            self.loaded[key] = contender.recipe.build()
        return self.loaded[key]

    def part(self, contender: Contender, name: str, measure: Callable[[Callable[[int, int], None]], Any]) -> None:
        """Measure a part, unless its result is there already."""
        stage = f"{contender.name}: {name}"
        if self.store.get(contender, name) is None:
            self.progress(stage, 0, 1)
            self.store.put(contender, name, measure(lambda done, total: self.progress(stage, done, total)))
        self.progress(stage, 1, 1)
