"""Read i-PI's present step from its own outputs, where it runs on this machine.

i-PI writes the outputs of a step when it is done with it, and requests no forces before the next one; so a request
after a line has appeared belongs to a later step. An output that requests structures itself (`Output.asks`) belongs to
the step for which it is written, and with threads it is written at the same time as the others: a step is done when the
last of them is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from beadwork.events import Moment
from beadwork.ipi.simulation import Output

#: bytes at the end of a file that are read for its last step, doubled until a step is found, up to the second number
TAIL_BYTES, MAX_TAIL_BYTES = 4096, 1 << 22

_TITLE = re.compile(rb"Step:\s*(\d{1,18})\b[^\n]*\n")
_COUNTER = re.compile(rb"<step[^>]*>\s*(\d{1,18})\s*</step>")


class Written:
    """Follows those outputs of a simulation from which its step can be told.

    outputs: as `Simulation.outputs` has them. first: the step that ours are counted from.
    """

    def __init__(self, outputs: Sequence[Output], first: int = 0) -> None:
        self._first = first
        self._every = min((output.every for output in outputs if output.every), default=0)
        finest = next((output for output in outputs if output.every and output.every == self._every), None)
        #: for every system the one that is written most often, and those that ask
        self._followed = [o for o in outputs if o.asks or (finest and o.number == finest.number)]
        #: whether the step can be told at all: where one that asks cannot be read, no step's end is known
        # one that asks and waits in a buffer is as good as unread
        self.tells = finest is not None and all(o.every and not (o.asks and o.every > o.stride) for o in self._followed)
        self._process: int | None = None
        self._files: list[tuple[Output, Path]] = []
        # size and time at the last read, and the last step: -1 before any, None where it may be of an earlier i-PI
        self._found: dict[Path, tuple[tuple[int, int] | None, int | None]] = {}
        self._begin: int | None = None  # the first step that this i-PI has written

    def attach(self, process: int | None, directory: Path) -> None:
        """Follow the i-PI with this process id in this working directory; repeated calls for the same one do nothing.

        Lines that are in its files already may have been written by an earlier i-PI, and are ignored.
        """
        if self._files and process == self._process:
            return
        self._process = process
        self._files = [(output, directory / output.files[-1]) for output in self._followed]
        self._found = {}
        self._begin = None
        for output, path in self._files:
            stamp = _stamp(path)
            # a file without a line belongs to an i-PI that has just begun: it opens all files but checkpoints before
            # its first request
            fresh = _last(output, path) is None and (stamp is not None or output.kind == "checkpoint")
            self._found[path] = stamp, -1 if fresh else None

    def look(self) -> Moment:
        """The present step, counted from `first`; None where nothing was written since this i-PI began."""
        steps = [(output, self._read(output, path)) for output, path in self._files]
        known = [step for output, step in steps if output.every == self._every and step is not None]
        if not known or len(known) < sum(output.every == self._every for output, _ in steps):
            return Moment(None)
        done = min(known)
        if done < 0:
            return Moment(0 if self._first == 0 else None)
        if self._begin is None:
            self._begin = done
        for output, step in steps:  # outputs that request structures and are not done with that step
            due = done - done % output.every
            if output.every != self._every and due >= self._begin and (step is None or step < due):
                done -= self._every
                break
        step = done + 1 - self._first
        return Moment(step if step >= 0 else None, self._every - 1)

    def _read(self, output: Output, path: Path) -> int | None:
        stamp = _stamp(path)
        before, step = self._found[path]
        if stamp != before:  # stat is cheap, reading at every evaluation is not
            found = _last(output, path)
            step = found if found is not None else step
            self._found[path] = stamp, step
        return step


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def _last(output: Output, path: Path) -> int | None:
    """The last step that is complete in a file; None where there is none."""
    size = TAIL_BYTES
    while True:
        try:
            with open(path, "rb") as file:
                end = file.seek(0, 2)
                file.seek(max(0, end - size))
                text = file.read()
        except OSError:
            return None
        step = _step(output, text, size >= end)
        if step is not None or size >= min(end, MAX_TAIL_BYTES):
            return step
        size *= 2


def _step(output: Output, text: bytes, whole: bool) -> int | None:
    if output.kind == "checkpoint":
        counter = _COUNTER.search(text) if whole else None
        return int(counter[1]) if counter else None
    if output.kind == "trajectory":
        titles = _TITLE.findall(text)
        return int(titles[-1]) if titles else None
    # the last piece is a line without its end, and the first may be the rest of one
    lines = text.split(b"\n")[0 if whole else 1 : -1]
    for line in reversed(lines):
        words = line.split()
        if words and not line.startswith(b"#") and len(words) == len(output.columns):
            with suppress(ValueError, OverflowError):  # damaged; the line before it counts
                return round(float(words[output.step or 0]))
    return None
