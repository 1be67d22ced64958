"""A few of the cases of `make fuzz`, for every kind of file; and that what looks for findings finds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beadwork.errors import ConfigError
from fuzz import run as fuzz
from fuzz.subjects import SUBJECTS, Subject

#: cases of a kind; `make fuzz` has hundreds
FEW = 12


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_damaged_files_are_read_or_refused_in_a_sentence(subject: Subject) -> None:
    """No traceback, no hang, no end of the process, no NaN for i-PI: whatever has become of a file."""
    count = max(2, round(FEW * subject.share))
    tally = fuzz.run(subject, count, seed=2)
    assert tally.found == {}
    assert tally.read + tally.refused == count


def _make(folder: Path) -> list[Path]:
    (folder / "a.txt").write_text("whole")
    return [folder / "a.txt"]


def _read(folder: Path) -> None:
    """A reader with every fault there is; the valid file is read."""
    text = (folder / "a.txt").read_bytes()
    if text == b"whole":
        return
    kind = sum(text) % 5
    if kind == 0:
        raise ConfigError("this file is not what it was; copy it again")
    if kind == 1:
        raise KeyError("lost")
    if kind == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == 3:
        bytearray(1 << 32)
    else:
        while True:
            time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_findings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, a process that dies, memory beyond the bound and a wait without end are each found, by the number of
    the case, and the cases after them are run; a sentence is none."""
    monkeypatch.setattr(fuzz, "LONGEST", 0.3)
    tally = fuzz.run(Subject("faulty", _make, _read), 40, seed=1)
    found = "\n".join(tally.found.values())
    for sign in ("KeyError: 'lost'", "the process ended with -9", "MemoryError", "Hang: it goes on"):
        assert sign in found
    assert tally.refused > 0
    assert tally.read + tally.refused + len(tally.found) == 40


def test_others_on_the_processor_are_no_hang() -> None:
    """A process that shares its processor with four others has had a part of the seconds; one that sleeps has had them
    all."""
    where = min(os.sched_getaffinity(0))
    busy = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{where}}})\nwhile True: pass"]
    processes = [subprocess.Popen(busy) for _ in range(5)]
    asleep = subprocess.Popen(["sleep", "60"])
    try:
        time.sleep(0.3)
        begin = time.monotonic()
        awake = [fuzz.Awake(process.pid) for process in (processes[0], asleep)]
        time.sleep(1.0)
        shared, alone = (one.seconds() for one in awake)
        assert shared < 0.7 * alone
        assert alone > 0.9 * (time.monotonic() - begin)
    finally:
        for process in (*processes, asleep):
            process.kill()
            process.wait()
