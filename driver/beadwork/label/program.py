"""A program that computes a label: run to its end, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def run(
    command: Sequence[str], folder: Path, log: Path, timeout: float, environment: Mapping[str, str] | None = None
) -> int:
    """Run it in a folder, with all that it says in `log`, and return its exit code.

    It is killed, with all that it has started, after `timeout` seconds and when this process is interrupted. Raises
    subprocess.TimeoutExpired, and OSError where it cannot be started.
    """
    # A signal raises in the main thread. In the midst of Popen it would leave a program that nobody knows of, so
    # another thread starts it.
    with log.open("wb") as output, ThreadPoolExecutor(1) as starter:
        begun = starter.submit(
            subprocess.Popen,
            list(command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        try:
            return begun.result().wait(timeout)
        finally:
            process = begun.result()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def last_line(log: Path, nothing: str = "it said nothing") -> str:
    """The last line in a log that is not blank; `nothing` where there is none."""
    lines = (line.strip() for line in reversed(log.read_text(errors="replace").splitlines()))
    return next(filter(None, lines), nothing)
