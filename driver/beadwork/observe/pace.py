"""The progress and speed of a run, as the live line, the status file and the metrics show them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from beadwork.events import WHOSE, Evaluated, Event, FrameKept, Joined, Lost

#: present values are means over so many steps and evaluations
WINDOW_STEPS = 100
#: the newest of them, whose mean is compared with that of all for the trend
NEWEST_EVALUATIONS = 10
#: relative difference from the running mean above which the spread rises or falls
TREND_FRACTION = 0.1
#: parts of a step by their names in `Evaluated.seconds`: the name for users, and the share to which it counts; any
#: other name is a model
TIME_PARTS = {
    "idle": ("i-PI and waiting for it", "i-PI"),
    "graph": ("graph", "graph"),
    "reduce": ("sum and spread", "rest"),
    "pack": ("replies and extras", "rest"),
    "send": ("wire", "rest"),
    "aside": ("work after the reply", "rest"),
}


#: the message where `Potential.spread_of_delta_alone` holds
SPREAD_OF_DELTA_ALONE = "the spread is that of Δ alone: the baseline's error against its own reference is not in it"


class Pace:
    """Counts and times events; it must get every event before the watchers that read it.

    time_step: fs, where it is known. forcefields: how many are served; with multiple time steps they are evaluated at
    different rates, and the one with the lowest rate counts the steps. first: the step at which i-PI starts.
    """

    def __init__(self, time_step: float | None = None, forcefields: int = 1, first: int = 0) -> None:
        self.step: int | None = first
        self.evaluations = 0
        self.joined = False  #: `step` is this server's count, since i-PI was under way when it connected
        self.kept = 0
        self.kept_for: Counter[str] = Counter()  #: a frame may be kept for two reasons
        self.new_structures = 0  #: with an atom above `events.NOVELTY_EDGE`, since the start
        self.new_atoms = 0
        self.spread: float | None = None  #: eV/Å, the largest of the last evaluation that has one
        self.answered: float | None = None  #: when the last result was sent, on the monotonic clock
        self._novelty: dict[str, Mapping[str, float]] = {}  # by address: baseline and Δ may have one each
        self._first = first
        self._time_step = time_step
        self._forcefields = forcefields
        self._steps: dict[str, int | None] = {}
        self._marks: deque[tuple[int, float]] = deque(maxlen=WINDOW_STEPS + 1)
        self._spreads: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._seconds: deque[Mapping[str, float]] = deque(maxlen=WINDOW_STEPS)
        self._last: float | None = None  # seconds of the last evaluation, without the wait for it
        self._resumed = True  # the next evaluation's idle time is a wait for i-PI to start, not part of a step

    def __call__(self, event: Event) -> None:
        """Process one event."""
        if isinstance(event, FrameKept):
            self.kept += 1
            self.kept_for.update(event.why)
        elif isinstance(event, Joined):
            self.joined = True
            self.step = self._first = 0
        # a night without i-PI is no slow step
        elif isinstance(event, Lost):
            self._marks.clear()
            self._resumed = True
        elif isinstance(event, Evaluated):
            self._add(event)

    def _add(self, event: Evaluated) -> None:
        self.answered = time.monotonic()
        self.evaluations += 1
        # without the wait for i-PI: this is asked where i-PI may hang
        self._last = sum(seconds for name, seconds in event.seconds.items() if name != "idle")
        if event.force_spread is not None:
            self.spread = event.force_spread
            self._spreads.append(event.force_spread)
        self._novelty[event.address] = event.novelty
        self.new_structures += event.new_structures
        self.new_atoms += event.new_atoms
        if self._resumed or event.step == 0:  # the first evaluation also loads and compiles
            self._resumed = False
        else:
            self._seconds.append(event.seconds)
        # of a blurred step it is certain only that the steps before it are done
        step = None if event.step is None else event.step - bool(event.blur and event.step)
        self._steps[event.address] = step
        known = [step for step in self._steps.values() if step is not None]
        # one forcefield whose step is unknown, and the step of the whole is
        if len(known) < len(self._steps):
            self.step = None
            self._marks.clear()
            return
        # with multiple time steps one forcefield runs ahead within a step; the last one has done it
        done = self._first + (min(known) if len(known) == self._forcefields else 0)
        if self.step is None or done < self.step:  # it has become known, or i-PI was started again
            self.step = done
            self._marks.clear()
        if done > self.step:
            self.step = done
            # when a step was new, so that evaluations within a step do not count as steps
            self._marks.append((done, self.answered))

    @property
    def seconds_per_step(self) -> float | None:
        """Of the last hundred steps; None before the second."""
        if len(self._marks) < 2:
            return None
        (first, begin), (last, end) = self._marks[0], self._marks[-1]
        return (end - begin) / (last - first)

    @property
    def ns_per_day(self) -> float | None:
        """Simulated time per day at that pace; None where the time step is not known."""
        seconds = self.seconds_per_step
        return nanoseconds_per_day(self._time_step, seconds) if seconds and self._time_step else None

    @property
    def mean_spread(self) -> float | None:
        """eV/Å, over the last hundred evaluations."""
        return fmean(self._spreads) if self._spreads else None

    @property
    def trend(self) -> str:
        """'rising', 'falling' or 'steady': the newest spreads against their running mean; empty where there are few."""
        if len(self._spreads) <= NEWEST_EVALUATIONS:
            return ""
        # means of several: single evaluations scatter more than a trend
        newest, mean = fmean(list(self._spreads)[-NEWEST_EVALUATIONS:]), fmean(self._spreads)
        if abs(newest - mean) <= TREND_FRACTION * mean:
            return "steady"
        return "rising" if newest > mean else "falling"

    @property
    def novelty(self) -> dict[str, float]:
        """The largest of any atom in the last evaluations, by the part that it is new to; empty where not known."""
        found: dict[str, float] = {}
        for of in self._novelty.values():
            for part, value in of.items():
                found[part] = max(value, found.get(part, 0.0))
        return found

    @property
    def shares(self) -> dict[str, float]:
        """The time of the last hundred evaluations as fractions: i-PI, models, graph and the rest; they sum to 1."""
        sums: dict[str, float] = defaultdict(float)
        for seconds in self._seconds:
            for name, value in seconds.items():
                sums[TIME_PARTS[name][1] if name in TIME_PARTS else "models"] += value
        total = sum(sums.values())
        return {name: sums[name] / total for name in ("i-PI", "models", "graph", "rest")} if total else {}

    def facts(self) -> dict[str, Any]:
        """All of this as plain data: eV/Å, seconds, steps; None for what is not known yet."""
        return {
            "step": self.step,
            "evaluations": self.evaluations,
            "joined": self.joined,
            "seconds_per_step": self.seconds_per_step,
            "seconds_of_the_last": self._last,
            "ns_per_day": self.ns_per_day,
            "force_spread": self.spread,
            "force_spread_mean": self.mean_spread,
            "trend": self.trend,
            "novelty": self.novelty,
            "new_structures": self.new_structures,
            "new_atoms": self.new_atoms,
            "frames_kept": self.kept,
            "frames_kept_for": dict(self.kept_for),
            "shares": self.shares,
        }


def nanoseconds_per_day(time_step: float, seconds: float) -> float:
    """Simulated time per day. time_step: fs. seconds: of one step."""
    return 1e-6 * time_step / seconds * 86400  # ns in a fs, s in a day


def format_pace(facts: Mapping[str, Any], total: int) -> list[str]:
    """Format `Pace.facts`; what is not known yet is left out."""
    far = f"step {facts['step']} of {total}"
    if facts["step"] is None:
        far = f"evaluation {facts['evaluations']}, i-PI's step of {total} is not known"
    joined = facts.get("joined")  # older runs lack the entry
    if joined:
        far = f"{facts['step']} steps since this server connected to a running i-PI, whose step of {total} is not known"
    if seconds := facts["seconds_per_step"]:
        far += f", {seconds:.3g} s per step"
        far += f", {facts['ns_per_day']:.3g} ns/day" if facts["ns_per_day"] else ""
        ended = facts["step"] is not None and facts["step"] >= total
        far += "" if joined or ended else f", {format_duration((total - facts['step']) * seconds)} left"
    sure = f"frames kept: {facts['frames_kept']}"
    if new := facts.get("frames_kept_for", {}).get("novelty"):
        sure += f", {new} of them for novelty"
    if facts["force_spread"] is not None:
        trend = f", {facts['trend']}" if facts["trend"] else ""
        sure = f"spread {facts['force_spread']:.3g} eV/Å{trend}; {sure}"
    if novelty := facts.get("novelty"):
        sure = f"{format_largest_novelty(novelty)}{'; ' if facts['force_spread'] is None else ', '}{sure}"
    return [far, sure] + ([format_shares(facts["shares"])] if facts["shares"] else [])


def format_largest_novelty(novelty: Mapping[str, float]) -> str:
    """'novelty 3.20 (baseline)': the largest, and the part that it is new to."""
    part = max(novelty, key=lambda part: novelty[part])
    return f"novelty {novelty[part]:.2f} ({WHOSE[part].removeprefix('the ')})"


def format_shares(shares: Mapping[str, float]) -> str:
    """'i-PI 10 %, models 85 %, …'."""
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def format_duration(seconds: float) -> str:
    """Format a duration, with two units at most."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours / 24:.1f} days"
