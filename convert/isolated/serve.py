"""The process: reads jobs from standard input, one line of JSON each, and does each in a fork of its own.

What is imported is imported once; what a job loads is gone with its fork. A line answers: the exit status of the fork
and the file of the report, which the job names. Where there is no fork, jobs are done in the process itself.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import IO, Any

from . import job as jobs


def _work(job: dict[str, Any]) -> None:
    """Do one job and write its report."""
    Path(job["report"]).write_text(json.dumps(jobs.run(job)))


def _fork(job: dict[str, Any]) -> int:
    """Do a job in a fork and return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _work(job)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main(answers: IO[str]) -> None:
    """Serve until standard input ends, then remove the folder of this process."""
    try:
        jobs.warm_up()
        gc.freeze()  # what all jobs share is not looked through in each of them
        gc.enable()
        for line in sys.stdin:
            job = json.loads(line)
            jobs.preload(job.get("model_types", []))
            if hasattr(os, "fork"):
                answer = _fork(job)
            else:
                _work(job)
                answer = 0
            answers.write(f"{answer} {job['report']}\n")
            answers.flush()
    finally:
        shutil.rmtree(os.environ["CONVERT_ATTN_ISOLATED"], ignore_errors=True)
