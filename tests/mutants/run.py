"""Put every fault of the table into a copy of the repository, run its tests there, and write docs/mutants.md.

    python tests/mutants/run.py [--jobs 2] [WORD …]

WORD: only faults whose file or meaning has it; the page is written where all have run. A fault is caught when a test
fails, or takes a minute. Exit code 1 where one is not, or where the tests fail without any fault.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutants.table import MUTANTS, Mutant  # noqa: E402

PAGE = ROOT / "docs" / "mutants.md"
#: copied, since they are changed or look around themselves; the rest is only read
COPIED = ("driver", "tests", "docs", "Makefile")
#: the libraries that nearly all tests import: in the process from which those of the tests are forked, once for all
LIBRARIES = ["torch", "numpy", "scipy.sparse", "ase.io", "ase.db", "numba", "vesin", "pytest"]
LIBRARIES += ["ipi.inputs.simulation", "ipi.interfaces.sockets"]
CONTEXT = multiprocessing.get_context("forkserver")
#: bytes that a test may take: some faults are those of what bounds it
MEMORY = 12 << 30
#: seconds for one test, and for all of one fault
LONGEST, PATIENCE = 60, 900


@dataclass(frozen=True)
class Ran:
    """What pytest said: the first test that failed, and whether that says anything about the fault."""

    failed: str | None
    broken: bool
    seconds: float
    said: str


def copy(folder: Path) -> Path:
    """The repository as it is on the disk, in a folder of its own."""
    for path in ROOT.iterdir():
        if path.name in COPIED:
            made = folder / path.name
            ignored = shutil.ignore_patterns("__pycache__")
            # links stay links: the package's own to inputs and models, whose scripts are none of the package
            shutil.copytree(path, made, ignore=ignored, symlinks=True) if path.is_dir() else shutil.copy2(path, made)
        else:
            (folder / path.name).symlink_to(path)
    return folder


def test(where: Path, tests: Sequence[str]) -> Ran:
    """Run the fast ones of these, up to the first that fails, in a process that has the libraries already."""
    log = where / "log"
    begin = time.monotonic()
    process = CONTEXT.Process(target=_pytest, args=(where, [f"tests/{name}" for name in tests], log))
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
    seconds, said = time.monotonic() - begin, log.read_text(errors="replace")
    if process.exitcode == 0:
        return Ran(None, False, seconds, said)
    found = re.search(r"^(FAILED|ERROR) (\S+)", said, re.MULTILINE)
    # a test that cannot even be read has seen nothing
    return Ran(found[2] if found else None, not found or "::" not in found[2], seconds, said)


def _pytest(where: Path, tests: Sequence[str], log: Path) -> None:
    """What a process of its own does: all that it imports of ours is the copy."""
    with log.open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(where)
    os.environ["PYTHONPATH"] = str(where / "driver")  # before the package that is installed; for children
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a change of equal length within a second would not be seen
    os.environ["SYMMETRIX_JIT_CACHE"] = str(where.parent / "kernels")
    sys.dont_write_bytecode = True
    sys.path[:] = [str(where / "driver"), *(path for path in sys.path if not path.startswith(str(ROOT / "tests")))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "mutants"]:
        del sys.modules[name]  # the copy has its own
    import pytest

    options = [
        "-x",
        "-q",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        f"--timeout={LONGEST}",
        "-rfE",
        "--tb=short",
    ]
    sys.exit(int(pytest.main([*options, "--disable-warnings", *tests])))


@contextmanager
def changed(where: Path, mutant: Mutant) -> Iterator[None]:
    """The copy with one fault in it."""
    file = where / mutant.file
    before = file.read_text(encoding="utf-8")
    if before.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.file} has {mutant.old!r} {before.count(mutant.old)} times, and not once")
    try:
        file.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
        yield
    finally:
        file.write_text(before, encoding="utf-8")


def page(found: Sequence[tuple[Mutant, Ran]], seconds: float, jobs: int) -> str:
    """docs/mutants.md."""
    caught = sum(ran.failed is not None and not ran.broken for _, ran in found)
    lines = [
        "# Faults put in on purpose",
        "",
        "Would a test notice? `make mutants` changes one place of the code at a time, in a copy, and runs the fast "
        "tests of that part. The faults are in tests/mutants/table.py: add one there with every new part.",
        "",
        f"{caught} of {len(found)} were caught on {date.today().isoformat()}, in {seconds / 60:.0f} minutes with "
        f"{jobs} at a time on {os.cpu_count()} cores.",
        "",
        "| file | what it was, and became | what it would mean | the test that fails | seconds |",
        "|---|---|---|---|---|",
    ]
    for mutant, ran in found:
        change = f"`{_one_line(mutant.old)}` → `{_one_line(mutant.new)}`"
        test = "**NONE**" if ran.failed is None else ran.failed.removeprefix("tests/").replace("::", " ")
        test = f"**BROKEN** {test}" if ran.broken else test
        file = mutant.file.removeprefix("driver/beadwork/")
        cells = (file, change, mutant.meaning, re.sub(r"\[.*", "", test), f"{ran.seconds:.0f}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> int:
    """Run them; see above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    CONTEXT.set_forkserver_preload(LIBRARIES)
    chosen = [m for m in MUTANTS if not given.words or any(w in f"{m.file} {m.meaning}" for w in given.words)]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(given.jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        (Path(name) / "kernels").mkdir(mode=0o700)
        for number in range(given.jobs):
            folder = Path(name) / str(number)
            folder.mkdir()
            copies.put(copy(folder))

        def run(mutant: Mutant | str) -> Ran:
            where = copies.get()
            try:
                if isinstance(mutant, str):
                    return test(where, mutant.split())
                with changed(where, mutant):
                    return test(where, mutant.tests.split())
            finally:
                copies.put(where)

        found = []
        for mutant, ran in zip(chosen, pool.map(run, chosen), strict=True):
            what = "BROKEN" if ran.broken else "caught" if ran.failed else "NOT CAUGHT"
            print(f"{ran.seconds:6.1f} s  {what}  {mutant.file}: {mutant.meaning}: {ran.failed}", flush=True)
            if ran.broken:
                print(ran.said[-800:])
            found.append((mutant, ran))
        unsound = set()
        sets = sorted({m.tests for m in chosen})
        for tests, ran in zip(sets, pool.map(run, sets), strict=True):
            print(f"{ran.seconds:6.1f} s  without a fault  {tests}", flush=True)
            if ran.failed is not None or ran.broken:
                print(f"{ran.said[-800:]}\nthe tests fail without any fault: what they say of one counts for nothing")
                unsound.add(tests)
    found = [(m, replace(ran, broken=ran.broken or m.tests in unsound)) for m, ran in found]
    if not given.words:
        PAGE.write_text(page(found, time.monotonic() - begin, given.jobs), encoding="utf-8")
    lost = [mutant for mutant, ran in found if ran.failed is None or ran.broken]
    print(f"{len(found) - len(lost)} of {len(found)} caught in {(time.monotonic() - begin) / 60:.1f} minutes")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
