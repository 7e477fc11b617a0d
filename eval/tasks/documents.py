"""The documents of the bundled tasks, as lm-eval's `custom_dataset` wants them: a DatasetDict with the split "test"."""

from __future__ import annotations

import random
from importlib import import_module
from typing import Any

from convert_attn.eval.measures.passages import bundled_documents

_CONTEXT_LINES = 8
_PER_MODULE = 20
_SHORTEST = 20  # characters of a line that is worth guessing


def _as_dataset(rows: list[dict[str, Any]]) -> Any:
    datasets = import_module("datasets")  # comes with lm-eval
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def heldout(**settings: Any) -> Any:
    """Give one row for each module: `text`."""
    return _as_dataset([{"text": module} for module in bundled_documents()])


def next_line(**settings: Any) -> Any:
    """Tell which line comes next: `context`, four `choices`, and `label`, the right one.

    The three wrong lines are from other modules, as near to the right one in indentation and then in length as can be,
    so that neither gives it away.
    """
    order = random.Random(0)
    modules = [module.splitlines() for module in bundled_documents()]
    return _as_dataset([row for number in range(len(modules)) for row in _rows(modules, number, order)])


def _rows(modules: list[list[str]], number: int, order: random.Random) -> list[dict[str, Any]]:
    lines = modules[number]
    others = {line for other in modules if other is not lines for line in other if _worth(line)}
    targets = [index for index in range(_CONTEXT_LINES, len(lines)) if _worth(lines[index])]
    rows = []
    for target in sorted(order.sample(targets, _PER_MODULE)):
        right = lines[target]
        near = sorted(others - {right}, key=lambda line: (*_distance(line, right), line))
        wrong = order.sample(near[:3], 3)
        label = order.randrange(4)
        choices = [*wrong[:label], right, *wrong[label:]]
        context = "\n".join(lines[target - _CONTEXT_LINES : target])
        rows.append({"context": context, "choices": choices, "label": label})
    return rows


def _worth(line: str) -> bool:
    return len(line.strip()) >= _SHORTEST


def _distance(line: str, right: str) -> tuple[int, int]:
    """Of two lines: by indentation first, then by length."""

    def indent(text: str) -> int:
        return len(text) - len(text.lstrip())

    return abs(indent(line) - indent(right)), abs(len(line) - len(right))
