"""No sentence is data: with every sentence of the package in other words, the loop and the swap decide as they do.

Tests of theirs are run again by a Python that reads the package reworded (`support/reworded`), and so do all processes
that they start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def reworded() -> dict[str, str]:
    """The environment in which the package is read in other words."""
    path = os.pathsep.join(filter(None, [str(TESTS / "support" / "reworded"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def test_sentences_are_other_words_and_records_are_not() -> None:
    """The tool works: two modules say the same in different words, an error's semicolon is gone, and names, options,
    numbers, keys and lines of a record are as they were."""
    program = """
from beadwork import config, errors
from beadwork.observe import record
from beadwork.observe.progress import format_event
from beadwork.events import Refused
try:
    config.ServeConfig(simulation="x", servers=0, device="tpu").check()
except errors.ConfigError as error:
    assert "give" not in str(error) and ";" not in str(error), error
    assert "--baseline" in str(error), error
assert str(errors.ModelError("a b", "c d")) == "a b / c d"
assert "refused" not in format_event(Refused("folder", "reason"))
assert record.NOVELTY == ("novelty_baseline", "novelty_delta")
assert record._REFUSED == "# refused: "
import sitecustomize
said = "the new committee was refused; why"
names = "beadwork.a", "beadwork.b"
one, two = (sitecustomize.Rewording(name).visit(sitecustomize.ast.Constant(said)).value for name in names)
assert len({said, one, two}) == 3, (one, two)
assert sitecustomize.shifted("see --on-mark in run.toml of {path} and %(default)s", 1) == (
    "tff --on-mark jo run.toml pg {path} boe %(default)s"
)
"""
    ended = subprocess.run([sys.executable, "-c", program], env=reworded(), capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


def decided(*tests: str, seconds: float) -> str:
    """The last line of pytest when it has run these, reworded."""
    command = [sys.executable, "-m", "pytest", "--assert=plain", "-p", "no:cacheprovider", "-o", "addopts=", "-q"]
    ended = subprocess.run(
        [*command, "--import-mode=importlib", "--timeout", "600", *tests],
        cwd=TESTS.parent,
        env=reworded(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-3000:]
    return ended.stdout.strip().splitlines()[-1]


def test_decisions_of_the_loop_and_the_swap() -> None:
    """When the loop waits, gives up and goes on, and when a committee is taken up and refused."""
    last = decided("tests/loop/test_simulate.py", "tests/serve/test_hot_swap.py", seconds=280)
    assert int(last.split()[0]) >= 30, last


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_swap_and_a_loop_with_real_ipi() -> None:
    """A committee swapped in mid-run, six that are refused and the way back; a loop with a simulation a generation, and
    with one that lives through them and has to take up the committee that was trained; which of several servers are
    started again."""
    last = decided(
        "tests/serve/test_supervisor.py",
        "tests/end_to_end/test_swap.py::test_swap_in_mid_run",
        "tests/end_to_end/test_swap.py::test_a_bad_committee_is_refused_and_the_old_one_answers_on",
        "tests/loop/test_loop.py::test_one_generation_goes_from_frames_to_a_served_committee",
        "tests/loop/test_loop.py::test_simulation_goes_on",
        seconds=2900,
    )
    assert int(last.split()[0]) >= 30, last
