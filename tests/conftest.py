"""One thread a test process, and in whatever it starts; and the table of faults (`make faults`)."""

from __future__ import annotations

import os
import platform
import re
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest

from beadwork import log

# several pools on two cores take each other's time
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_PROC_BIND", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")
# a shell ignores SIGINT for what it starts in the background, and every process from there on
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

log.set_up()  # as any command does


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered between runs goes into no home of a person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say what happened, as it was measured: exit code, sentence, seconds, rows. Once, at the end of the test.

    The test is marked `@pytest.mark.fault(name, how it is provoked)`, where {parameter} stands for the test's own.
    """

    def call(happened: str) -> None:
        request.node.user_properties.append(("happened", happened))

    return call


def pytest_addoption(parser: pytest.Parser) -> None:
    """Give the name of the table, which is written only then."""
    parser.addoption("--fault-table", type=Path, help="write what the tests marked `fault` found, as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    """Make the table, in the process that hears of every test."""
    path = config.getoption("--fault-table")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(path), "fault-table")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each fault before its test runs, so that one that fails is in the table too."""
    for item in items:
        mark = item.get_closest_marker("fault")
        if mark is not None:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            for key, text in zip(("fault", "provoked"), mark.args, strict=True):
                item.user_properties.append((key, text.format_map(parameters)))


@dataclass
class Fault:
    """One row. outcome: the worst of the test's phases."""

    fault: str
    provoked: str = ""
    happened: str = ""
    seconds: float = 0.0
    outcome: str = "passed"

    def row(self) -> str:
        """As Markdown."""
        passed = {"passed": "yes", "failed": "**FAILED**"}.get(self.outcome, self.outcome)
        if self.outcome == "passed" and not self.happened:
            passed = "**FAILED**: its test does not say what happened"
        cells = (self.fault, self.provoked, self.happened, f"{self.seconds:.1f}", passed)
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


def joined(rows: Iterable[Fault]) -> list[Fault]:
    """One row for those that differ by numbers alone: these become a range, and the seconds are the longest."""
    groups: dict[tuple[str, ...], list[Fault]] = {}
    for row in rows:
        words = (_NUMBER.sub("#", text) for text in (row.fault, row.provoked, row.happened))
        groups.setdefault((*words, row.outcome), []).append(row)
    return [
        Fault(
            *(_ranged([getattr(row, name) for row in group]) for name in ("fault", "provoked", "happened")),
            max(row.seconds for row in group),
            group[0].outcome,
        )
        for group in groups.values()
    ]


def _ranged(texts: list[str]) -> str:
    """Texts that differ by numbers as one."""
    parts = []
    for same in zip(*(_NUMBER.split(text) for text in texts), strict=True):
        low, high = (same[0], same[0]) if len(set(same)) == 1 else (min(same, key=float), max(same, key=float))
        parts.append(low if low == high else f"{low} to {high}")
    return "".join(parts)


def _elsewhere(text: str) -> str:
    """The text without this machine's paths; two words with a slash between them are no path."""
    return re.sub(r"(?<![\w…])/\S+/", "…/", text)


def _counted(text: str) -> str:
    """The text with numbers that sort as numbers."""
    return re.sub(r"\d+", lambda number: number[0].zfill(9), text)


class FaultTable:
    """Listens to every report, and writes the table when all is done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Fault] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read has tests that nobody counts: it is a row of its own."""
        if report.failed:
            self._rows[report.nodeid] = Fault(report.nodeid, "collecting its tests", outcome="failed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Setup, call and teardown come one after the other."""
        said = dict(report.user_properties)
        if "fault" not in said:
            return
        row = self._rows.setdefault(report.nodeid, Fault(said["fault"], said["provoked"]))
        row.happened = _elsewhere(said.get("happened", row.happened))
        if report.when == "call":
            row.seconds = report.duration
        if report.failed:
            row.outcome = "failed"
            crash = getattr(report.longrepr, "reprcrash", None)
            said_last = crash.message.splitlines()[0] if crash else f"its {report.when} failed"
            row.happened = row.happened or _elsewhere(said_last)
        elif report.skipped and row.outcome == "passed":
            row.outcome = "skipped"
            row.happened = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        """Write the table, whatever the outcome."""
        tests = self._rows.values()
        rows = sorted(joined(tests), key=lambda row: (_counted(row.fault.lower()), _counted(row.provoked)))
        passed = sum(test.row().endswith("| yes |") for test in tests)
        used = ", ".join(f"{name} {version(name)}" for name in ("beadwork", "ipi", "torch", "ase"))
        self._path.write_text(
            "\n".join(
                [
                    "# Faults",
                    "",
                    "What can go wrong, how a test makes it go wrong, and what then happened. Each row is a test, or "
                    "several that differ by numbers; `make faults` runs them all and writes this page.",
                    "",
                    f"{passed} of {len(tests)} passed on {date.today().isoformat()}, with {used}, "
                    f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
                    f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores.",
                    "",
                    "| fault | how it was provoked | what happened | seconds | passed |",
                    "|---|---|---|---|---|",
                    *(row.row() for row in rows),
                    "",
                ]
            )
        )
        return (yield)
