"""The folder that a run works in, beside its output: all that is needed to go on after a kill, gone when it is done."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from convert_attn.convert.checkpoint.writer import replace_file
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.heal.state.settings import Settings
from convert_attn.convert.processes import is_alive

_RUN, _PID, _READY = "run.json", "pid", "text-ready"
_STATE = "state-"
_PARTIAL = ".partial"


@contextmanager
def failures_in_words(folder: Path) -> Iterator[None]:
    """Tell what the system refuses, as a sentence.

    Raises:
        ConvertAttnError: a full disk, or whatever else cannot be written or read.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        torch_cannot_write = "PytorchStreamWriter" in str(error)
        if isinstance(error, RuntimeError) and not torch_cannot_write:
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or torch_cannot_write or "No space left" in str(error):
            raise ConvertAttnError(
                f"the disk that holds '{folder}' is full or cannot be written: free space, and go on with --resume"
            ) from None
        raise ConvertAttnError(f"working in '{folder}' failed: {' '.join(str(error).split())}") from None


class Workplace:
    """`<output>.heal`; made, cleaned and removed by the first process, read by all.

    Attributes:
        folder: where it is.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.absolute().with_name(f"{output.absolute().name}.heal")

    def begin(self, settings: Settings, identity: dict[str, Any], resume: bool, overwrite: bool) -> None:
        """Make the folder, or take it up.

        Args:
            identity: what else must be the same in a run that goes on: model, teacher, text.

        Raises:
            UsageError: there is an unfinished run (without `resume`), none (with it), or one with other options.
            ConvertAttnError: the folder cannot be written.
        """
        run = self.folder / _RUN
        if self.folder.exists() and not run.is_file() and any(map(_is_strange, self.folder.iterdir())):
            raise UsageError(
                f"'{self.folder}' is in the way and no unfinished run: move it, or choose another --output"
            )
        if resume and not run.is_file():
            raise UsageError(f"--resume: there is no unfinished run in '{self.folder}'; drop it to begin one")
        self._check_alone()
        if run.is_file() and resume:
            self._compare(self._begun(run), settings, identity)
        elif run.is_file():
            if not overwrite:
                raise UsageError(
                    f"'{self.folder}' holds an unfinished run: give --resume to go on, or --overwrite to begin anew"
                )
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _PID).write_text(str(os.getpid()))
            if not run.is_file():
                _keep_facts(run, {"settings": settings.as_dict(), "identity": identity})
        except OSError as error:
            raise ConvertAttnError(f"cannot write to '{self.folder}': {error.strerror}") from None

    def _begun(self, run: Path) -> dict[str, Any]:
        """How the unfinished run was begun."""
        try:
            found = json.loads(run.read_text())
            return {"settings": dict(found["settings"]), "identity": dict(found["identity"])}
        except (ValueError, KeyError, TypeError):
            raise ConvertAttnError(
                f"'{run}' is damaged, so the run cannot be taken up: --overwrite without --resume to begin anew"
            ) from None

    def _check_alone(self) -> None:
        try:
            pid = int((self.folder / _PID).read_text())
        except (OSError, ValueError):
            return
        if pid != os.getpid() and is_alive(pid):
            raise UsageError(f"process {pid} is healing to the same output: wait for it, or choose another --output")

    def _compare(self, found: dict[str, Any], settings: Settings, identity: dict[str, Any]) -> None:
        changed = settings.differences(found["settings"])
        changed += [name for name, value in identity.items() if found["identity"].get(name) != value]
        if changed:
            raise UsageError(
                f"--resume: the unfinished run in '{self.folder}' was begun with other {', '.join(changed)}: give the "
                "same, or --overwrite without --resume to begin anew"
            )

    @property
    def has_text(self) -> bool:
        """Whether the text has been packed to its end."""
        return (self.folder / _READY).exists()

    def text_is_ready(self) -> None:
        """Say so."""
        (self.folder / _READY).touch()

    def keep(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any] | None = None) -> None:
        """Save tensors, and facts about them, whole or not at all."""
        path = self.folder / f"{name}.safetensors"
        metadata = {"facts": json.dumps(facts or {})}
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, f"{path}{_PARTIAL}", metadata
        )
        os.replace(f"{path}{_PARTIAL}", path)

    def has(self, name: str) -> bool:
        """Tell whether `keep` has saved something under a name."""
        return (self.folder / f"{name}.safetensors").is_file()

    def kept(self, name: str) -> dict[str, Tensor] | None:
        """Tell what `keep` has saved under a name."""
        return load_file(self.folder / f"{name}.safetensors") if self.has(name) else None

    def facts(self, name: str) -> dict[str, Any]:
        """Give the facts that were saved with it."""
        with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()["facts"])
        return found

    def partial_state(self, step: int) -> Path:
        """Tell where the state after so many steps is to be written."""
        return self.folder / f"{_STATE}{step:08d}{_PARTIAL}"

    def state_is_whole(self, step: int, facts: dict[str, Any]) -> None:
        """The state has been written by all processes: it takes the place of older ones."""
        partial = self.partial_state(step)
        _keep_facts(partial / "facts.json", facts)
        older = self._states()
        os.replace(partial, self.folder / f"{_STATE}{step:08d}")
        for path in older:
            shutil.rmtree(path, ignore_errors=True)

    def last_state(self) -> tuple[Path, dict[str, Any]] | None:
        """Give the newest whole state and the facts that came with it."""
        states = self._states()
        return (states[-1], json.loads((states[-1] / "facts.json").read_text())) if states else None

    def _states(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"{_STATE}*") if path.suffix != _PARTIAL)

    def remove(self) -> None:
        """The run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_strange(path: Path) -> bool:
    """Not what is left of a run that was killed as it began."""
    return path.name != _PID and not path.name.startswith(f".{_RUN}.")


def _keep_facts(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, json.dumps(content, indent=2) + "\n")
