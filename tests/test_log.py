"""What is said on stderr, to whom, and how much of it."""

from __future__ import annotations

import errno
import io
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tqdm import tqdm

from beadwork import cli, log
from beadwork.doctor import report
from beadwork.doctor.finding import RED, Finding
from beadwork.events import FrameKept, Note
from beadwork.observe.pace import Pace
from beadwork.observe.progress import Progress

#: says something of every level and kind, as a command does
SAYING = """
import logging, sys, warnings
from beadwork import log
log.set_up(int(sys.argv[1]))
log.logger.debug("a frame")
log.logger.info("i-PI %s", "is looked for")
log.progress.info("step 3")
log.logger.warning("hung up")
log.logger.error("5 % of it")
logging.getLogger("parsl").warning("a node is lost")
logging.getLogger("parsl").info("a node is there")
warnings.warn("it will change", FutureWarning)
"""
#: what that says, by level
SAID = [
    (1, "DEBUG", "beadwork: a frame"),
    (0, "INFO", "beadwork: i-PI is looked for"),
    (0, "INFO", "step 3"),
    (-1, "WARNING", "beadwork: hung up"),
    (-1, "ERROR", "beadwork: 5 % of it"),
    (-1, "WARNING", "parsl: a node is lost"),
    (1, "INFO", "parsl: a node is there"),
    (-1, "WARNING", "py.warnings: it will change (FutureWarning, <string>:12)"),
]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The other tests are told what a command tells by default."""
    yield
    log.set_up()


@pytest.mark.parametrize("verbosity", [-1, 0, 1])
def test_into_a_pipe_a_message_stands_as_it_is(verbosity: int) -> None:
    """A reader of a pipe gets the words alone, from the level that was asked for; so does a terminal."""
    done = subprocess.run([sys.executable, "-c", SAYING, str(verbosity)], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [text for least, _, text in SAID if verbosity >= least]
    assert done.stdout == ""


def test_in_a_file_it_has_time_and_level(tmp_path: Path) -> None:
    """Each line of a file can be taken apart again, by the module that writes it."""
    with open(tmp_path / "log", "w+") as file:
        subprocess.run([sys.executable, "-c", SAYING, "1"], stderr=file, check=True)
        file.seek(0)
        lines = file.read().splitlines()
    assert [log.taken_apart(line) for line in lines] == [(getattr(logging, level), text) for _, level, text in SAID]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+ ", line) for line in lines)
    assert log.taken_apart("Traceback (most recent call last):") == (logging.INFO, "Traceback (most recent call last):")


def test_a_program_of_the_users_hears_warnings() -> None:
    """Who imports the package and sets up no logging is told what is a warning, and no more."""
    code = "from beadwork.log import logger; logger.info('a'); logger.warning('row 3 is damaged')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "row 3 is damaged\n"


def test_a_message_above_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """A line does not break into the bar below it."""
    with tqdm(total=3, file=sys.stderr) as bar:
        bar.update()
        log.logger.warning("look here")
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    assert "beadwork: look here" in lines


class Full(io.StringIO):
    """A file on a disk without room, or a terminal that is gone."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, "no")


def test_a_full_disk_reaches_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """logging would swallow it; a run on a full disk is to end. A terminal that is gone ends nothing."""
    monkeypatch.setattr(sys, "stderr", Full(errno.ENOSPC))
    with pytest.raises(OSError, match="no"):
        log.logger.warning("x")
    monkeypatch.setattr(sys, "stderr", Full(errno.EIO))
    log.logger.warning("x")


@pytest.mark.parametrize(
    ("flag", "words"), [([], ["info", "warning"]), (["-q"], ["warning"]), (["-v"], ["kept", "info", "warning"])]
)
def test_how_much_a_command_says(
    flag: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """-q leaves warnings, -v adds each frame kept; and what is started for us is told the same."""

    def status(args: object) -> int:
        progress = Progress(Pace(0.5), 10)
        progress(FrameKept(3, 40, 2, 0.5, ("spread", "novelty")))
        progress(Note("info"))
        progress(Note("warning", logging.WARNING))
        print(log.flags())
        return 0

    monkeypatch.setattr(cli, "_status", status)
    assert cli.main(["status", *flag]) == 0
    told = capsys.readouterr()
    known = {
        "kept": "beadwork: row 3: kept a frame of step 40, bead 2, for its spread and novelty",
        "info": "beadwork: info",
        "warning": "beadwork: warning",
    }
    assert told.err.splitlines() == [known[word] for word in words]
    assert told.out == f"{flag}\n"


def test_errors_are_said_in_any_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """-q swallows no error, and changes no exit code."""
    assert cli.main(["status", str(tmp_path), "-q"]) == 2
    assert capsys.readouterr().err.startswith("beadwork: ")


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own, of any package, goes where messages go, once."""

    def warns(args: object) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            log.set_up()
            warnings.warn("the grid is coarse", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_status", warns)
    cli.main(["status"])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"py\.warnings: the grid is coarse \(UserWarning, .*test_log\.py:\d+\)", line)


@pytest.mark.parametrize(("value", "coloured"), [(None, True), ("", True), ("1", False)])
def test_no_color(
    value: str | None, coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The doctor's colours on a terminal, and the red of an alarm, are left out where NO_COLOR is set to anything."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    monkeypatch.setattr(report, "examine", lambda config: iter([Finding(RED, "cell", "flat", "", 3)]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert report.doctor(None) == 3  # type: ignore[arg-type]
    assert ("\033[" in capsys.readouterr().out) == coloured
    log.set_up(-1)
    log.print_progress("epoch 3")
    log.print_progress(log.Alarm("this is worse"))
    assert capsys.readouterr().out.splitlines() == ["\033[1;31mthis is worse\033[0m" if coloured else "this is worse"]
