"""The live line and the plain lines, against events of known times."""

from __future__ import annotations

import errno
import io
import sys
from dataclasses import replace

import pytest

from beadwork.errors import ResourceError
from beadwork.events import Evaluated, Event, FrameKept, Joined, Lost, Note
from beadwork.observe import pace as pace_module
from beadwork.observe import progress as progress_module
from beadwork.observe.pace import Pace, format_duration, format_pace
from beadwork.observe.progress import Progress


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Both modules see this clock."""
    clock = Clock()
    monkeypatch.setattr(pace_module, "time", clock)
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def event(step: int, spread: float | None = 0.01, idle: float = 0.1) -> Evaluated:
    """One evaluation of a second: by default a tenth is i-PI's, the graph takes a tenth, two models the rest."""
    seconds = {"idle": idle, "graph": 0.1, "base (native)": 0.5, "delta (native)": 0.25, "reduce": 0.03, "send": 0.02}
    return Evaluated("a", step, 4, -1.0, spread, spread, seconds)


def feed(clock: Clock, *watchers: object, steps: range, each: float = 2.0, spread: float = 0.01) -> None:
    """So many steps, this many seconds apart."""
    for step in steps:
        clock.now += each
        for watcher in watchers:
            watcher(event(step, spread))  # type: ignore[operator]


def test_pace_is_that_of_the_last_steps(clock: Clock) -> None:
    """0.5 fs a step at 2 s per step is 0.0216 ns/day, and a step that loaded models for an hour does not count."""
    pace = Pace(time_step=0.5)
    assert pace.seconds_per_step is pace.ns_per_day is None
    clock.now += 3600
    feed(clock, pace, steps=range(5))
    assert pace.seconds_per_step == pytest.approx(2.0)
    assert pace.ns_per_day == pytest.approx(0.5e-6 / 2.0 * 86400)
    feed(clock, pace, steps=range(5, 300), each=4.0)
    assert pace.seconds_per_step == pytest.approx(4.0)


def test_a_lost_ipi_is_no_slow_step(clock: Clock) -> None:
    """A night without i-PI enters neither the pace nor i-PI's share."""
    pace = Pace(time_step=0.5)
    feed(clock, pace, steps=range(5))
    pace(Lost("a", "i-PI hung up", 0))
    clock.now += 36000
    pace(event(5, idle=36000.0))
    feed(clock, pace, steps=range(6, 8))
    assert pace.seconds_per_step == pytest.approx(2.0)
    assert pace.shares["i-PI"] == pytest.approx(0.1)


def test_shares_are_those_put_in(clock: Clock) -> None:
    """i-PI, models, graph and the rest sum to one, whatever the models are called."""
    pace = Pace()
    feed(clock, pace, steps=range(3))
    assert pace.shares == pytest.approx({"i-PI": 0.1, "models": 0.75, "graph": 0.1, "rest": 0.05})


@pytest.mark.parametrize(("newest", "trend"), [(0.02, "rising"), (0.005, "falling"), (0.0101, "steady")])
def test_trend_is_against_the_running_mean(clock: Clock, newest: float, trend: str) -> None:
    """Ten evaluations at another level than the forty before are a trend; one more is not looked at alone."""
    pace = Pace()
    feed(clock, pace, steps=range(40))
    assert pace.trend == "steady"
    feed(clock, pace, steps=range(40, 50), spread=newest)
    assert pace.trend == trend
    assert pace.mean_spread == pytest.approx((40 * 0.01 + 10 * newest) / 50)


def new(address: str, step: int, novelty: dict[str, float], atoms: int = 0) -> Evaluated:
    """An evaluation with novelty."""
    return replace(event(step), address=address, novelty=novelty, new_structures=bool(atoms), new_atoms=atoms)


def test_novelty_is_that_of_all_parts(clock: Clock) -> None:
    """Baseline and Δ at addresses of their own have one each; the larger one is named, and atoms add up."""
    pace = Pace()
    assert pace.novelty == pace.facts()["novelty"] == {}
    for told in (new("base", 0, {"baseline": 3.2}, 5), new("delta", 0, {"delta": 1.4}, 2), FrameKept(1, 0, 0, 0.1)):
        pace(told)
    pace(FrameKept(2, 0, 0, 0.1, ("spread", "novelty")))
    facts = pace.facts()
    assert facts["novelty"] == {"baseline": 3.2, "delta": 1.4}
    assert (facts["new_structures"], facts["new_atoms"]) == (2, 7)
    assert facts["frames_kept_for"] == {"spread": 2, "novelty": 1}
    said = "; ".join(format_pace(facts, 10))
    assert "novelty 3.20 (baseline), spread 0.01 eV/Å; frames kept: 2, 1 of them for novelty" in said
    pace(new("base", 1, {"baseline": 0.5}))
    assert "novelty 1.40 (Δ)" in "; ".join(format_pace(pace.facts(), 10))
    pace(new("delta", 1, {}))  # a committee that does not know was taken up
    assert pace.novelty == {"baseline": 0.5}


def test_novelty_without_a_committee(clock: Clock) -> None:
    """A baseline alone may know what it was trained on."""
    pace = Pace()
    pace(replace(new("a", 0, {"baseline": 0.5}), force_spread=None))
    assert format_pace(pace.facts(), 10)[1] == "novelty 0.50 (baseline); frames kept: 0"


def test_step_is_that_of_ipi(clock: Clock) -> None:
    """Served from a RESTART at step 500, the count goes on from there."""
    pace = Pace(first=500)
    feed(clock, pace, steps=range(4))
    assert pace.step == 503


def test_the_step_of_an_ipi_under_way_is_not_made_up(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that came in the middle knows how many steps it answered, and neither i-PI's step nor what is left."""
    pace = Pace(time_step=0.5, first=500)
    progress = Progress(pace, 1000)
    for watcher in (pace, progress):
        watcher(Joined("a"))
    feed(clock, pace, progress, steps=range(4))
    assert pace.step == 3
    said = "; ".join(format_pace(pace.facts(), 1000))
    assert said.startswith("3 steps since this server connected to a running i-PI, whose step of 1000 is not known")
    assert "left" not in said
    assert "i-PI was under way" in capsys.readouterr().err


def test_no_pace_of_steps_that_are_not_known(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluations are shown, and no step, ns/day or time left; once i-PI has written its step, it is that."""
    pace = Pace(0.5)
    progress = Progress(pace, 100)
    unknown = replace(event(1), step=None)
    for _ in range(50):
        clock.now += 2.0
        pace(unknown)
        progress(unknown)
    facts = pace.facts()
    assert (facts["step"], facts["ns_per_day"], facts["evaluations"]) == (None, None, 50)
    said = capsys.readouterr().err
    assert said.splitlines()[0].startswith("evaluation 15, i-PI's step of 100 is not known; spread 0.01")
    assert "left" not in said
    for step in (7, 7, 8, 8, 9):  # two evaluations a step
        clock.now += 2.0
        pace(event(step))
    assert pace.step == 9
    assert pace.seconds_per_step == pytest.approx(4.0)
    pace(replace(event(21), blur=9))
    assert pace.step == 20


def test_plain_lines_where_there_is_no_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A log gets whole lines, one in half a minute and one at the end, and no control characters."""
    pace = Pace(time_step=0.5)
    progress = Progress(pace, 50)
    for watcher in (pace, progress):
        watcher(FrameKept(1, 0, None, 0.1))
    progress(Note("something to read"))
    progress(Lost("/tmp/ipi_x", "i-PI hung up", 0))
    feed(clock, pace, progress, steps=range(41))
    progress.close()
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert "\r" not in said
    assert lines[:2] == ["beadwork: something to read", "beadwork: /tmp/ipi_x: i-PI hung up; dialling again"]
    # 82 s of steps: a line at the first step 30 s after the one before
    assert [line.split(",")[0] for line in lines[2:]] == ["step 14 of 50", "step 29 of 50", "step 40 of 50"]
    assert lines[-1] == (
        "step 40 of 50, 2 s per step, 0.0216 ns/day, 20 s left; spread 0.01 eV/Å, steady; frames kept: 1; "
        "i-PI 10 %, models 75 %, graph 10 %, rest 5 %"
    )


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE])
def test_a_terminal_that_is_gone_ends_no_run(clock: Clock, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A closed ssh session leaves a server that computes, and has nobody to tell; a full disk is still an error."""

    class Gone(io.StringIO):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def write(self, text: str) -> int:
            raise OSError(self.number, "gone")

    monkeypatch.setattr(sys, "stderr", Gone(number))
    progress = Progress(Pace(), 10)
    progress(Note("something"))
    progress.close()
    monkeypatch.setattr(sys, "stderr", Gone(errno.ENOSPC))
    with pytest.raises(OSError, match="gone"):
        progress(Note("something"))
    pace = Pace()
    pace(event(1))
    with pytest.raises(ResourceError, match="cannot write the log: gone"):  # in no watcher: the run's last line
        Progress(pace, 10).close()


def test_one_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step, pace, novelty, spread with its arrow, frames kept and shares stand in one line that is written over."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(progress_module, "tqdm", _eager(progress_module.tqdm))
    pace = Pace(time_step=0.5)
    progress = Progress(pace, 30)
    events: list[Event] = [new("a", step, {"baseline": 1.2, "delta": 3.25}) for step in range(26)]
    for told in [*events[:-1], FrameKept(1, 24, 0, 0.1), events[-1]]:
        pace(told)
        progress(told)
    progress.close()
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("25/30 |")
    for part in (
        "ns/day",
        "novelty 3.25 (Δ), spread 0.01 eV/Å →",
        "kept 1",
        "i-PI 10 %, models 75 %, graph 10 %, rest 5 %",
    ):
        assert part in last
    assert terminal.getvalue().count("\n") == 1  # the one that leaves the last line standing


def test_an_ipi_that_starts_again_from_an_earlier_restart_is_followed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log and the live line go back to its step and on from there; neither is silent until it is caught up."""
    pace = Pace()
    progress = Progress(pace, 900)
    feed(clock, pace, progress, steps=range(500))
    capsys.readouterr()
    feed(clock, pace, progress, steps=range(200, 240))
    said = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [f"step {step} of 900" for step in (209, 224, 239)]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress_module, "tqdm", _eager(progress_module.tqdm))
    pace = Pace()
    live = Progress(pace, 900)
    feed(clock, pace, live, steps=range(50))
    feed(clock, pace, live, steps=range(20, 31))
    live.close()
    assert terminal.getvalue().split("\r")[-1].startswith("30/900 |")


def _eager(real: type) -> object:
    """tqdm that draws at every update."""
    return lambda **options: real(**{**options, "mininterval": 0.0, "ncols": 200, "dynamic_ncols": False})


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (59.6, "60 s"), (600, "10 min"), (5400, "1 h 30 min"), (86400, "24 h 0 min"), (864000, "10.0 days")],
)
def test_a_time_has_two_units_and_is_never_negative(seconds: float, said: str) -> None:
    """Two units at most, and never a negative time."""
    assert format_duration(seconds) == said
