"""The process in which checkpoints are run as their users run them: without this package, without a network.

It takes seconds to import its libraries. Nothing large is imported here, so that it can be started before they are
imported in this process, too.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.processes import is_alive

_ERRORS = "errors"  # what the process prints
_HOME = Path(__file__).parent.parent / "isolated"
# what the process runs first: no folder of ours or of the caller's on its path, answers apart from what is printed
_LAUNCH = """
import gc, os, sys, types

gc.disable()  # until its libraries are imported: looking for garbage meanwhile takes a fifth of the time

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "convert_attn":
            raise ImportError("convert_attn is not here: a checkpoint must load without it")

sys.path[:] = [entry for entry in sys.path if entry]
sys.meta_path.insert(0, Blocked())
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
package = types.ModuleType("isolated")
package.__path__ = [sys.argv[1]]
sys.modules["isolated"] = package
from isolated.serve import main
main(answers)
"""
# of a launcher of several processes: in this one there is one
_NOT_INHERITED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Isolated:
    """The process, started when it is first wanted and kept for the jobs that follow, of forks of this process too."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._folder = Path()
        self._count = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        with self._lock:
            self._start()

    def _start(self) -> subprocess.Popen[str]:
        if self._process is not None and self._alive(self._process):
            return self._process
        self._folder = Path(tempfile.mkdtemp(prefix="convert-attn-"))
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(self._folder / "modules"),
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CONVERT_ATTN_ISOLATED": str(self._folder),
        }
        with (self._folder / _ERRORS).open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(_HOME)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # an interrupt at the terminal is for the caller, which then ends this one
            )
        self._owner = os.getpid()
        return self._process

    def _alive(self, process: subprocess.Popen[str]) -> bool:
        return is_alive(process.pid) if self._owner != os.getpid() else process.poll() is None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job (see `isolated.job.run`) and return its report.

        Raises:
            ConvertAttnError: the process ended without one, for example for want of memory.
        """
        import torch  # imported by whoever has a job
        import transformers

        with self._lock:
            process = self._start()
            self._count += 1
            report = self._folder / f"report-{os.getpid()}-{self._count}.json"
            line = json.dumps(job | {"report": str(report), "threads": torch.get_num_threads()})
            try:
                with _alone(self._folder / "lock"):
                    answer = _exchange(process, line, report)
            except BaseException:  # interrupted: what it is at is of no use any more
                self._end(patience=0)
                raise
            try:
                return dict(json.loads(report.read_text()))
            except (OSError, ValueError):
                raise ConvertAttnError(
                    f"the process that runs '{job['folder']}' in transformers {transformers.__version__} ended "
                    f"({_status(answer, process)}) and told nothing: {self._last_error()}"
                ) from None
            finally:
                report.unlink(missing_ok=True)

    def _last_error(self) -> str:
        try:
            lines = (self._folder / _ERRORS).read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it printed no reason"

    def stop(self) -> None:
        """End the process and remove what it left; one that was never asked anything may be importing for seconds."""
        self._end(patience=5 if self._count else 0)

    def _end(self, patience: float) -> None:
        if self._process is None or self._owner != os.getpid():
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not yet written has nobody to read it
                    pipe.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)  # its fork, too
            self._process.kill()
            self._process.wait()
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time, where a process can be forked at all."""
    if not hasattr(os, "fork"):
        yield
        return
    import fcntl

    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # released with the file, also where this process is killed
        yield


def _exchange(process: subprocess.Popen[str], line: str, report: Path) -> str:
    """Hand over a line and wait for its answer, "" where the process has ended.

    Answers to others, who are gone, may come first.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        while answer := process.stdout.readline():
            status, _, whose = answer.strip().partition(" ")
            if whose == str(report):
                return status
    except OSError:
        pass
    return ""


def _status(answer: str, process: subprocess.Popen[str]) -> str:
    code = answer or str(process.poll())
    return f"signal {code[1:]}" if code.startswith("-") else f"exit status {code}"


ISOLATED = Isolated()
atexit.register(ISOLATED.stop)
