"""Tasks through EleutherAI's lm-evaluation-harness: https://github.com/EleutherAI/lm-evaluation-harness."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from convert_attn.convert.archs.longest_input import longest_input
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.eval import tasks as own_tasks
from convert_attn.eval.measures.quality import Estimate, batch_size, ratio

_NOT_METRICS = ("name", "alias", "sample_len", "sample_count")


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"--tasks needs lm-eval, and it cannot be imported ({error}): `pip install 'convert-attn[eval]'`, or leave "
            "--tasks out"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's bars and advice stay out of the way of our own progress; what it raises does not."""
    logger = logging.getLogger("lm_eval")
    level, sink = logger.level, io.StringIO()
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(sink):
            yield
    finally:
        logger.setLevel(level)


class Harness:
    """Tasks that exist, ready to be run on any number of models."""

    def __init__(self, tasks: Sequence[str], include_path: Path | None = None) -> None:
        """Look the tasks up; lm-eval's own index is read only for names that are not here.

        Args:
            tasks: names of tasks, groups or tags, or YAML files.
            include_path: folder with YAML tasks.

        Raises:
            UsageError: lm-eval is missing, or one of the tasks is.
        """
        if include_path is not None and not include_path.is_dir():
            raise UsageError(f"--include-path '{include_path}' is no folder: give one with YAML tasks of lm-eval")
        manager = _import("lm_eval.tasks").TaskManager
        folders = [str(own_tasks.FOLDER)] + ([str(include_path)] if include_path is not None else [])
        self.tasks = list(tasks)
        named = [task for task in tasks if not _is_file(task)]
        try:
            with _quiet():
                self._manager = manager(include_path=folders, include_defaults=False)
                if not all(self._manager.match_tasks([task]) for task in named):
                    self._manager = manager(include_path=folders, include_defaults=True)
        except Exception as error:  # YAML of others, and the code that it names
            raise UsageError(f"the tasks in --include-path '{include_path}' cannot be read: {_reason(error)}") from None
        for task in named:
            self._check(task)

    def _check(self, task: str) -> None:
        if self._manager.match_tasks([task]):
            return
        near = get_close_matches(task, self._manager.all_tasks, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists all"
        raise UsageError(f"task '{task}' is not known to lm-eval {_import('lm_eval').__version__}: {hint}")

    def run(
        self,
        model: Any,
        tokenizer: Any,
        limit: float | None = None,
        num_fewshot: int | None = None,
        batch: int | None = None,
    ) -> dict[str, Any]:
        """Run all tasks on one model.

        Args:
            limit: documents of each task, or below 1 a share of them.
            batch: sequences per forward call; None: what fits, found by trying on a GPU, by the size of the logits
                elsewhere.

        Returns:
            task or group -> `metrics` (name -> mean and error), `samples` (name -> one number per document), `version`
            and `documents`.

        Raises:
            ConvertAttnError: a task fails, for example because its dataset cannot be had.
        """
        simple_evaluate = _import("lm_eval").simple_evaluate
        wrapper = _import("lm_eval.models.huggingface").HFLM
        try:
            with _quiet():
                language_model = wrapper(pretrained=model, tokenizer=tokenizer, batch_size=batch or _batch(model))
                found = simple_evaluate(
                    model=language_model,
                    tasks=self.tasks,
                    task_manager=self._manager,
                    limit=limit,
                    num_fewshot=num_fewshot,
                    bootstrap_iters=1000,
                )
        except torch.OutOfMemoryError:
            raise ConvertAttnError("a task does not fit in memory: give a smaller --task-batch-size") from None
        except Exception as error:  # tasks are code and data of others
            raise ConvertAttnError(f"running {', '.join(self.tasks)} failed in lm-eval: {_reason(error)}") from None
        return {name: _result(found, name) for name in {**found["results"], **(found.get("groups") or {})}}


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _batch(model: Any) -> int | str:
    """On a GPU lm-eval tries; on a CPU trying too much kills the process."""
    if model.device.type == "cuda":
        return "auto"
    return batch_size(longest_input(model.config) or 2048, model.config.vocab_size, "cpu")


def _result(found: Any, name: str) -> dict[str, Any]:
    results = {**found["results"], **(found.get("groups") or {})}[name]
    metrics: dict[str, Any] = {}
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        if metric in _NOT_METRICS or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = results.get(f"{metric}_stderr,{filtered}")
        label = metric if filtered in ("", "none") else f"{metric} ({filtered})"
        metrics[label] = Estimate(float(value), float(error) if isinstance(error, (int, float)) else None).as_dict()
    better = (found.get("higher_is_better") or {}).get(name) or {}
    return {
        "metrics": metrics,
        "higher_is_better": {metric: bool(up) for metric, up in better.items() if up is not None},
        "samples": _samples((found.get("samples") or {}).get(name) or []),
        "version": (found.get("versions") or {}).get(name),
        "num_fewshot": (found.get("n-shot") or {}).get(name),
    }


def _samples(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Metric -> its value for each document, in order; only metrics that are one number per document."""
    rows = sorted((row for row in rows if row.get("filter") == "none"), key=lambda row: row["doc_id"])
    names = rows[0]["metrics"] if rows else []
    return {
        metric: [float(row[metric]) for row in rows]
        for metric in names
        if all(isinstance(row.get(metric), (int, float)) for row in rows)
    }


def _averaged(result: dict[str, Any], metric: str) -> list[float]:
    """One number per document where the metric is their mean; a perplexity, for one, is something else made of them."""
    values: list[float] = result["samples"].get(metric) or []
    mean = result["metrics"][metric]["mean"]
    return values if values and math.isclose(sum(values) / len(values), mean, rel_tol=1e-6, abs_tol=1e-9) else []


def paired(original: dict[str, Any], converted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Task -> metric -> conversion minus original, with the standard error of the paired differences by document
    where the metric is the mean of one number per document, else without."""
    found: dict[str, dict[str, Any]] = {}
    for task in (task for task in converted if task in original):
        ours, theirs = converted[task], original[task]
        found[task] = {}
        for metric in (metric for metric in ours["metrics"] if metric in theirs["metrics"]):
            a, b = _averaged(ours, metric), _averaged(theirs, metric)
            if a and b and len(a) == len(b):
                difference = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
                found[task][metric] = ratio(difference, torch.ones_like(difference)).as_dict()
            else:
                mean = ours["metrics"][metric]["mean"] - theirs["metrics"][metric]["mean"]
                found[task][metric] = Estimate(mean, None).as_dict()
    return found


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
