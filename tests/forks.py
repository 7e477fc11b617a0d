"""`convert-attn` in processes that are forked from one that has imported everything: cheap enough to kill many."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import split_progress

# Reads one JSON line: a list of runs {argv, cwd, kill_after}. They run side by side; one line is the answer.
_DRIVER = textwrap.dedent(
    """
    import json, os, signal, sys, threading, time

    import torch, transformers
    torch.set_num_threads(1)
    from convert_attn.convert import targets, verification
    from convert_attn.convert.conversion import api
    from convert_attn.convert.publish import card
    from convert_attn.convert.cli import commands as cli
    from convert_attn.convert.checkpoint import resolve as hub
    from convert_attn.convert.cli import report
    from convert_attn.convert.conversion import run
    from convert_attn.convert.heal import run as heal_run  # not run here: autograd threads do not survive a fork
    from convert_attn.convert.archs import architectures
    for name in architectures():  # their classes, once
        transformers.AutoConfig.for_model(name)
    for warm in json.loads(sys.argv[1]):
        sys.argv = ["convert-attn", *warm]
        try:
            cli.main()
        except SystemExit as ended:
            assert not ended.code, ended.code
    print("ready", flush=True)

    def child(run):
        os.chdir(run["cwd"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(run[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["convert-attn", *run["argv"]]
        try:
            cli.main()
        except SystemExit as ended:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(ended.code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)
        os._exit(71)

    for line in sys.stdin:
        runs = json.loads(line)
        begun, pids, ended = time.monotonic(), {}, {}
        for number, run in enumerate(runs):
            pid = os.fork()
            if not pid:
                child(run)
            pids[pid] = number
        due = sorted((run["kill_after"], pid) for pid, number in pids.items()
                     if (run := runs[number])["kill_after"] is not None)
        while len(ended) < len(runs):
            if due and time.monotonic() - begun >= due[0][0]:
                _, pid = due.pop(0)
                if pids[pid] not in ended:
                    os.kill(pid, signal.SIGKILL)
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid:
                ended[pids[pid]] = (os.WTERMSIG(status), os.WEXITSTATUS(status), time.monotonic() - begun,
                                    usage.ru_maxrss)
            else:
                time.sleep(0.0005)
        print(json.dumps([ended[number] for number in range(len(runs))]), flush=True)
    """
)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        signal: that killed it, 0 for none.
        code: its exit code.
        seconds: how long it ran.
        peak: resident memory at its highest, bytes; what it shares with its parent counts.
    """

    signal: int
    code: int
    seconds: float
    peak: int
    out: str
    err: str


class Forks:
    """Runs of the command line, each in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self._process, self._home = process, home

    def run(self, *commands: list[Any], cwd: Path, kill_after: float | None = None) -> list[Ended]:
        """Run command lines side by side.

        Args:
            kill_after: seconds after which SIGKILL is sent to each that still runs.
        """
        runs = [
            {
                "argv": [str(word) for word in words],
                "cwd": str(cwd),
                "kill_after": kill_after,
                "out": str(self._home / f"{number}.out"),
                "err": str(self._home / f"{number}.err"),
            }
            for number, words in enumerate(commands)
        ]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(runs) + "\n")
        self._process.stdin.flush()
        ended = json.loads(self._process.stdout.readline())
        texts = [[Path(run[name]).read_text() for name in ("out", "err")] for run in runs]  # type: ignore[arg-type]
        return [
            Ended(signal, code, seconds, kilobytes * 1024, out, split_progress(err)[0])
            for (signal, code, seconds, kilobytes), (out, err) in zip(ended, texts, strict=True)
        ]


@contextmanager
def forks(home: Path, *warm: list[Any]) -> Iterator[Forks]:
    """A parent to fork from.

    Args:
        home: a folder for what the runs print.
        warm: command lines that the parent runs itself first, so that its children need not import what they use.
    """
    words = json.dumps([[str(word) for word in line] for line in warm])
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line == "ready\n":
                break
        assert process.poll() is None
        yield Forks(process, home)
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()
