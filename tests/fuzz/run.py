"""Damaged files of every kind that beadwork reads, and a hostile i-PI: each is read, or refused in one sentence.

    python tests/fuzz/run.py [--seed 1] [--cases 300] [--jobs 2] [--only KIND] [--case KIND:NUMBER]

What is looked for: a traceback, a case of more than five seconds, a process that dies (of a signal, or of memory beyond
a stated bound), and NaN on its way to i-PI. docs/fuzz.md is written where all kinds were run. --case runs one again, in
this process, and leaves its files. Exit code 1 where something was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from beadwork import cli  # noqa: E402
from beadwork.errors import BeadworkError  # noqa: E402
from fuzz.damage import damage  # noqa: E402
from fuzz.subjects import SUBJECTS, Subject  # noqa: E402

PAGE = ROOT / "docs" / "fuzz.md"
#: seconds that no case may take, of the processor and of the clock, but for those in which others have the processor;
#: after how many more a process is killed that does not even say so
LONGEST, KILLED = 5.0, 5.0
#: bytes beyond what the process has when it begins
MEMORY = 1 << 30


class Hang(BaseException):
    """A case took too long. No Exception, so that nothing takes it for a failure."""


@dataclass
class Tally:
    """What came of the cases of one kind. found: what no case may end in, by the number that makes it again."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    found: dict[int, str] = field(default_factory=dict)


class Awake:
    """Seconds in which a process works or waits of its own accord: those of the clock without those in which a thread
    of it could go on and the processor was with others, as the kernel counts them.
    """

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._delays: dict[str, int] = {}  # ns, also of threads that have ended
        self._begin = time.monotonic() - self._delayed()

    def _delayed(self) -> float:
        for file in self._tasks.glob("*/schedstat"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                self._delays[file.parent.name] = int(file.read_text().split()[1])
        return sum(self._delays.values()) / 1e9

    def seconds(self) -> float:
        """Those since this was made. Asked often, it also knows of threads that do not live long."""
        delayed = self._delayed()
        return time.monotonic() - delayed - self._begin


def one(subject: Subject, folder: Path, files: Sequence[Path], whole: dict[Path, bytes], seed: str) -> str | None:
    """One case: None where the files were read, else how they were refused in a sentence. Raises the rest."""
    chance = random.Random(seed)
    file = chance.choice(files)
    damage(chance, file, whole[file])
    try:
        subject.read(folder)
    except BeadworkError as error:
        said = str(error)
    except (OSError, RecursionError, OverflowError) as error:
        if (told := cli._about_input(error)) is None:  # the one place that makes a sentence of what Python says
            raise
        said = str(told)
    else:
        return None
    assert len(said) > 20, f"that is no sentence: {said!r}"
    assert "Traceback" not in said, said
    return said


@contextlib.contextmanager
def valid(subject: Subject) -> Iterator[tuple[Path, list[Path], dict[Path, bytes]]]:
    """A folder with the valid files, which are read without a complaint."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        files = list(subject.make(folder))
        yield folder, files, {file: file.read_bytes() for file in files}


def clean(folder: Path, known: set[Path], whole: dict[Path, bytes]) -> None:
    """The folder as it was made."""
    for path in set(folder.rglob("*")) - known:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for file, data in whole.items():
        file.write_bytes(data)


def work(subject: Subject, numbers: Sequence[int], seed: int, said: int) -> None:
    """A process of its own: do these cases, and write a line of JSON before and after each to a descriptor."""

    def look(number: int, frame: FrameType | None) -> None:
        if max(awake.seconds(), time.process_time() - begin) > LONGEST:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Hang(f"it goes on, in:\n{''.join(traceback.format_stack(frame)[-6:])}")

    signal.signal(signal.SIGALRM, look)
    warnings.simplefilter("ignore")  # of what damaged numbers lead to; a case is judged by its end
    with valid(subject) as (folder, files, whole), open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        known = set(folder.rglob("*"))
        os.chdir(folder)  # where EXIT is written for an i-PI, which is this process too
        subject.read(folder)  # the valid ones, which import what is needed, too
        clean(folder, known, whole)
        with open("/proc/self/statm") as about:
            held = int(about.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        for number in numbers:
            os.write(said, json.dumps({"begins": number}).encode() + b"\n")
            begin, awake = time.process_time(), Awake(os.getpid())
            found, told = None, None
            signal.setitimer(signal.ITIMER_REAL, LONGEST / 10, LONGEST / 10)
            try:
                told = one(subject, folder, files, whole, f"{seed} {subject.name} {number}")
            except (Exception, Hang):  # noqa: BLE001 - whatever it is, it was to be a sentence
                found = traceback.format_exc()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            line = {"ends": number, "refused": told is not None, "found": found, "s": time.process_time() - begin}
            os.write(said, json.dumps(line).encode() + b"\n")
            clean(folder, known, whole)


def run(subject: Subject, count: int, seed: int) -> Tally:
    """All cases of one kind, in a process that is started again where a case has ended it."""
    tally = Tally()
    left = list(range(count))
    while left:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(read)
                work(subject, left, seed, write)
                code = 0
            except BaseException:  # noqa: BLE001 - it is told, and this process has no other end
                os.write(write, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
            finally:
                os._exit(code)
        os.close(write)
        under_way, ended = _hear(read, child, tally)
        _, status = os.waitpid(child, 0)
        if under_way is not None:
            tally.found[under_way] = f"the process ended with {os.waitstatus_to_exitcode(status)} in this case"
            ended.add(under_way)
        elif -1 in tally.found:
            break
        left = [number for number in left if number not in ended]
    return tally


def _hear(read: int, child: int, tally: Tally) -> tuple[int | None, set[int]]:
    """Listen to a process until its end; return the case that it had begun and not ended, and those it had ended."""
    import select

    under_way: int | None = None
    ended: set[int] = set()
    rest = b""
    awake = Awake(child)
    while True:
        if not select.select([read], [], [], 1.0)[0]:
            if under_way is not None and awake.seconds() > LONGEST + KILLED:
                os.kill(child, signal.SIGKILL)
            continue
        data = os.read(read, 1 << 16)
        if not data:
            os.close(read)
            return under_way, ended
        *lines, rest = (rest + data).split(b"\n")
        for line in map(json.loads, lines):
            if "broken" in line:
                tally.found[-1] = line["broken"]
            elif "begins" in line:
                under_way, awake = line["begins"], Awake(child)
            else:
                under_way = None
                ended.add(line["ends"])
                tally.slowest = max(tally.slowest, line["s"])
                if line["found"]:
                    tally.found[line["ends"]] = line["found"]
                else:
                    tally.refused += line["refused"]
                    tally.read += not line["refused"]


def page(tallies: dict[str, Tally], seed: int, seconds: float) -> str:
    """docs/fuzz.md."""
    total = sum(tally.read + tally.refused + len(tally.found) for tally in tallies.values())
    lines = [
        "# Damaged files",
        "",
        "`make fuzz` damages valid files of every kind that beadwork reads (bits flipped, pieces cut, doubled or full "
        "of noise, numbers that are none or huge, values of another type, deep nesting; tests/fuzz/damage.py has the "
        "ways) and lets a peer say damaged things to a whole server. Each case is read or refused in one sentence: no "
        f"traceback, none of more than {LONGEST:g} seconds (but for those in which others have the processor), no more "
        f"than {MEMORY >> 20} MiB beyond what the process has at its start (`RLIMIT_AS`), no number to i-PI that is "
        "none.",
        "",
        f"{total} cases from the seed {seed} on {date.today().isoformat()}, in {seconds / 60:.0f} minutes: "
        f"{sum(len(tally.found) for tally in tallies.values())} ended otherwise. Read means that the damage was one "
        "that says something else, such as another number in a comment, or was mended by what is left.",
        "",
        "| kind | cases | refused in a sentence | read | slowest, s | otherwise |",
        "|---|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        cases = tally.read + tally.refused + len(tally.found)
        lines.append(
            f"| {name} | {cases} | {tally.refused} | {tally.read} | {tally.slowest:.2f} | {len(tally.found)} |"
        )
    return "\n".join(lines) + "\n"


def again(which: str, seed: int) -> int:
    """One case, with its traceback; its files stay."""
    name, _, number = which.rpartition(":")
    (subject,) = [subject for subject in SUBJECTS if subject.name == name]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    files = list(subject.make(folder))
    print(folder)
    print(one(subject, folder, files, {file: file.read_bytes() for file in files}, f"{seed} {name} {number}"))
    return 0


def main() -> int:
    """Run them; see above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=400, help="of each kind, about")
    parser.add_argument("--only", default="", help="kinds whose name has this")
    parser.add_argument("--case", help="KIND:NUMBER, to be run again")
    given = parser.parse_args()
    if given.case:
        return again(given.case, given.seed)
    began = time.monotonic()
    tallies: dict[str, Tally] = {}
    for subject in SUBJECTS:
        if given.only in subject.name:
            started = time.monotonic()
            tally = tallies[subject.name] = run(subject, round(given.cases * subject.share), given.seed)
            print(
                f"{time.monotonic() - started:6.1f} s  {subject.name}: {tally.refused} refused, {tally.read} read, "
                f"slowest {tally.slowest:.2f} s, {len(tally.found)} otherwise",
                flush=True,
            )
            for number, found in tally.found.items():
                print(f"--- {subject.name}:{number}\n{found}", flush=True)
    if not given.only:
        PAGE.write_text(page(tallies, given.seed, time.monotonic() - began), encoding="utf-8")
    return 1 if any(tally.found for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
