"""What a run leaves behind for those who come later: beadwork.out, a line an evaluation, and summary.json.

Who else reads beadwork.out does it with the functions below: its lines are made and understood in this file alone. Each
line is written whole, so all of it is there after a kill but the last one, which may be torn.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from beadwork.disk import rotate_file, write_whole, writing
from beadwork.events import (
    NOVELTY_EDGE,
    WHOSE,
    Activated,
    Evaluated,
    Event,
    FrameKept,
    Joined,
    PassedOver,
    Refused,
    ThresholdPassed,
)
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import read_table

NAME = "beadwork.out"
#: the line where i-PI's step is not known
JOINED = "# joined an i-PI under way: its step is not known, and steps are counted from 0"
#: why frames were passed over, in words
PASSED = {
    "above": "they are above the selection window",
    "cooldown": "one was kept shortly before",
    "limit": "--keep-most are kept",
    "alike": "they are like one kept before",
}
COLUMNS = "# step  structures  energy/eV  energy_spread/eV  force_spread/(eV/A)  evaluation/s"
#: columns that every line has
FIXED = 6
#: the last columns, before those of the elements' novelty
NOVELTY = ("novelty_baseline", "novelty_delta")
_HEAD = COLUMNS.partition("  ")[0]
#: how the lines begin that hold JSON: what was run, and a committee that was refused
_ABOUT, _REFUSED = "# run: ", "# refused: "


class Record:
    """Writes `beadwork.out` as events come, and sums them up. What an earlier run left there gets a number.

    elements: symbols of those whose spread gets a column of its own. about: plain data of the run for those who read
    the file later; it stands in its second line. A step that is not known is nan, and one that is blurred (see
    `Moment`) the first that it may be.
    """

    def __init__(self, folder: Path, elements: Sequence[str] = (), about: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.kept = 0
        self.dropped = 0
        self.answered = False  # anything at all
        self._path = folder / NAME
        # both, or a new record would stand beside an old summary
        for old in (self._path, folder / "summary.json"):
            rotate_file(old)
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 - open for the run's length
        self._elements = tuple(elements)
        try:
            spreads, news = (f"spread_{e}/(eV/A)" for e in elements), (f"novelty_{e}" for e in elements)
            self._write("  ".join([COLUMNS, *spreads, *NOVELTY, *news]))
            if about:
                self._write(f"{_ABOUT}{json.dumps(about)}")
        except BaseException:
            with suppress(OSError):  # what could not be written cannot be now
                self._file.close()
            raise
        self._begin = time.monotonic()
        self._seconds: Counter[str] = Counter()
        self._evaluations = 0
        self._first = True  # nothing was answered yet
        self._before: dict[str, int] = {}  # steps that were done before we came
        self._steps: dict[str, int | None] = {}  # counted without gaps, so the last one says how many there were
        self._evaluated = 0
        self._spreads = 0  # evaluations that had one
        self._spread_sum = 0.0
        self._spread_most = 0.0
        self._energy_spread_sum = 0.0
        self._committees: list[dict[str, Any]] = []
        self._marks: Counter[str] = Counter()
        self._kept_for: Counter[str] = Counter()  # a frame may be kept for two reasons
        self._new = _New()
        self._passed: dict[str, tuple[int, float | None]] = {}  # why: frames, and their largest spread

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, FrameKept):
            self.kept += 1
            self._kept_for.update(event.why)
        elif isinstance(event, Evaluated):
            self._add(event)
        elif isinstance(event, ThresholdPassed):
            self._marks[event.kind] += 1
        elif isinstance(event, PassedOver):
            frames, most = self._passed.get(event.why, (0, None))
            if event.force_spread is not None:
                most = max(event.force_spread, most or 0.0)
            self._passed[event.why] = frames + event.frames, most
        elif isinstance(event, Joined):
            self._write(JOINED)
        elif isinstance(event, Activated):
            self._committees.append(
                {
                    "address": event.address,
                    "step": event.step,
                    "evaluation": event.evaluation,
                    "committee": event.committee,
                    "folder": event.folder,
                }
            )
            self._write(_format_activated(event))
        elif isinstance(event, Refused):
            self._write(f"{_REFUSED}{json.dumps({'goes on': event.folder, 'why': event.why})}")

    def _write(self, line: str) -> None:
        with writing(self._path):
            self._file.write(line + "\n")

    def _add(self, event: Evaluated) -> None:
        self.answered = True
        # the column is what an evaluation costs: i-PI's own time and the work after the reply are left out
        busy = sum(seconds for name, seconds in event.seconds.items() if name not in ("idle", "aside"))
        both = (event.energy_spread, event.force_spread)
        spread = " ".join("nan" if value is None else f"{value:.6e}" for value in both)
        elements = [f"{event.element_spread.get(element, math.nan):.6e}" for element in self._elements]
        parts = (event.novelty.get(column.removeprefix("novelty_")) for column in NOVELTY)
        new = [*parts, *(event.element_novelty.get(element) for element in self._elements)]
        elements += ["nan" if value is None else f"{value:.4f}" for value in new]
        step = "nan" if event.step is None else str(event.step)
        self._write(" ".join([f"{step:>8} {event.evaluated:4d} {event.energy:.8f} {spread} {busy:.6f}", *elements]))
        self._new.add(event)
        first, self._first = self._first, False
        if event.step == 0:
            self._before[event.address] = 0
        if event.step == 0 or (event.step is None and first):
            return  # loading, compiling and the start structure would hide what a step costs
        self._seconds.update(event.seconds)
        self._evaluations += 1
        if event.step is None:
            self._steps[event.address] = None
        else:
            # a server that came late counts from the step that it saw first
            self._before.setdefault(event.address, event.step - 1)
            self._steps[event.address] = event.step - bool(event.blur)
        self._evaluated += event.evaluated
        if event.energy_spread is not None and event.force_spread is not None:
            self._spreads += 1
            self._energy_spread_sum += event.energy_spread
            self._spread_sum += event.force_spread
            self._spread_most = max(self._spread_most, event.force_spread)

    def summary(self, done: int | None = None, each: int | None = None, come_to: int | None = None) -> dict[str, Any]:
        """Sum up all but step 0.

        done: steps that i-PI itself counts after step 0, where its own record can be read. each: structures that it
        asks for in a step, where that is known. come_to: the step that it has come to by its outputs, not done yet;
        those before this server came are not counted. Without these `structures_per_bead_step` is null; so are the
        steps and what is told of each where nobody knows them, and the spreads where no evaluation had one.
        """
        known = {address: step for address, step in self._steps.items() if step is not None}
        # the step that i-PI has come to is not done yet
        written = come_to - 1 if come_to else 0  # at least, as outputs have strides
        counted = min((max(step, written) - self._before[address] for address, step in known.items()), default=0)
        steps = done or (counted if len(known) == len(self._steps) else None)
        # i-PI's own count of steps alone: ours would be held against itself
        asked = done * each if done and each else None
        spreads = self._spreads
        return {
            "steps": steps,
            "evaluations": self._evaluations,
            "evaluations_per_step": self._evaluations / steps if steps else None,
            "structures_evaluated": self._evaluated,
            "structures_per_bead_step": self._evaluated / asked if asked else None,
            "seconds_per_evaluation": sum(self._seconds.values()) / self._evaluations if self._evaluations else None,
            "seconds_total": time.monotonic() - self._begin,
            "seconds_per_step": sum(self._seconds.values()) / steps if steps else None,
            "seconds_per_step_by_part": {name: value / steps for name, value in self._seconds.items()} if steps else {},
            "force_spread_mean": self._spread_sum / spreads if spreads else None,
            "force_spread_max": self._spread_most if spreads else None,
            "energy_spread_mean": self._energy_spread_sum / spreads if spreads else None,
            "frames_kept": self.kept,
            "frames_kept_for": dict(self._kept_for),
            "novelty": self._new.summary(),
            "frames_dropped": self.dropped,
            "frames_passed_over": {
                why: {"frames": frames, "force_spread_max": most} for why, (frames, most) in self._passed.items()
            },
            "committees": self._committees,
            "marks_passed": dict(self._marks),
        }

    def close(self, summary: dict[str, Any]) -> None:
        """Write summary.json and close beadwork.out. Raises ResourceError or ConfigError."""
        path = self.folder / "summary.json"
        try:
            with writing(self._path):
                self._file.close()  # what could not be written before is tried once more
        finally:
            with writing(path):
                # whole: scripts that wait for this file must not read a part of it
                write_whole(path, json.dumps(summary, indent=2) + "\n")


@dataclass
class _New:
    """Structures and atoms above `events.NOVELTY_EDGE`, of those of which novelty is known; step 0
    included."""

    structures: int = 0
    new_structures: int = 0
    new_atoms: int = 0
    largest: dict[str, float] = field(default_factory=dict)  # by the part that they are new to

    def add(self, event: Evaluated) -> None:
        if event.novelty:
            self.structures += event.evaluated
            self.new_structures += event.new_structures
            self.new_atoms += event.new_atoms
            for part, value in event.novelty.items():
                self.largest[part] = max(value, self.largest.get(part, 0.0))

    def summary(self) -> dict[str, Any] | None:
        """None where no model knew what it was trained on."""
        return asdict(self) if self.structures else None


def _format_activated(event: Activated) -> str:
    """The line that says whose answers follow; `_TAKEN_UP` finds the committee in it."""
    since = f"evaluation {event.evaluation}" if event.step is None else f"step {event.step}"
    return f"# from {since} on {event.address}: {event.committee} in {event.folder}"


_TAKEN_UP = re.compile(r"# from (?:step|evaluation) \d+ on .*?: (None|sha256:\w+) in ")


def _lines(path: Path) -> Iterator[str]:
    """The lines that are whole, without their ends."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            # the last line of a killed run may be torn
            if line.endswith("\n"):
                yield line[:-1]


def read_record(path: Path) -> tuple[FloatArray, dict[str, FloatArray], dict[str, FloatArray]]:
    """Read beadwork.out: step, structures, energy, energy spread, force spread, seconds; (evaluations, 6).

    And the columns after the sixth, (evaluations,) each: an element's root-mean-square force spread, eV/Å, by its
    symbol; the largest novelty by the part that it is of ('baseline', 'delta') and by the symbol of its element.
    """
    comments, table = read_table(path)
    # columns by name: files of earlier releases have fewer
    names = _names(comments[0])[FIXED:] if comments else []
    columns: dict[str, dict[str, FloatArray]] = {"spread": {}, "novelty": {}}
    for name, values in zip(names, table.T[FIXED:], strict=False):
        kind, _, of = name.partition("_")
        if kind in columns:
            columns[kind][of.partition("/")[0]] = values
    return table[:, :FIXED] if table.size else table.reshape(-1, FIXED), columns["spread"], columns["novelty"]


def _names(header: str) -> list[str]:
    return header.removeprefix("#").split()


def read_about(path: Path) -> dict[str, Any]:
    """What beadwork.out says of its run (`Record`), `joined` among it; empty where it says nothing.

    cut: True in it, where that line is no JSON: a full disk or a kill has cut it.
    """
    about: dict[str, Any] = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(_ABOUT):
                try:
                    about |= dict(json.loads(line.removeprefix(_ABOUT)))
                except (ValueError, TypeError):
                    about["cut"] = True
            elif line.rstrip("\n") == JOINED:  # after the first rows, where another forcefield was asked first
                about["joined"] = True
    return about


@dataclass(frozen=True, slots=True)
class Committees:
    """Who answered. taken_up: the committees (the first digits of their hashes), the newest last. refused: why each
    other one was refused since then."""

    taken_up: list[str]
    refused: list[str]


def read_committees(path: Path) -> Committees:
    """Which committees beadwork.out names; none where it is not there yet."""
    found = Committees([], [])
    for line in _lines(path):
        if taken_up := _TAKEN_UP.match(line):
            found.taken_up.append(taken_up[1])
            # what was refused before another one was activated is history
            found.refused.clear()
        elif line.startswith(_REFUSED):
            found.refused.append(str(json.loads(line.removeprefix(_REFUSED))["why"]))
    return found


@dataclass(slots=True)
class Answered:
    """A step as beadwork.out has it.

    spread: the largest force spread of any bead, eV/Å; None where it was not evaluated, as at most steps of members on
    one trunk. baseline, delta: the largest novelty of any atom for these; None where they do not know what they were
    trained on.
    """

    spread: float | None = None
    baseline: float | None = None
    delta: float | None = None

    def add(self, spread: float, baseline: float, delta: float) -> None:
        """Take one evaluation in; NaN is unknown."""
        self.spread = _larger(self.spread, spread)
        self.baseline = _larger(self.baseline, baseline)
        self.delta = _larger(self.delta, delta)


def _larger(known: float | None, value: float) -> float | None:
    return known if math.isnan(value) else max(value, known or 0.0)


def read_answered(path: Path, committee: str) -> dict[int | str, Answered]:
    """What this committee (the first digits of its hash) has answered, by the server's count of steps, or by the line
    of an evaluation, as text, where steps are not known. Evaluations without a spread, which the baseline answered
    alone, are left out."""
    steps: dict[int | str, Answered] = {}
    serves, names = False, list[str]()
    for row, line in enumerate(_lines(path)):
        if taken_up := _TAKEN_UP.match(line):
            serves = taken_up[1] == committee
        elif line.startswith(_HEAD):
            names = _names(line)
        elif serves and not line.startswith("#"):
            words = line.split()
            step, of_energies, spread = words[0], float(words[3]), float(words[4])
            columns = dict(zip(names, words, strict=False))  # a server of an earlier release has no novelty
            # an evaluation without energy spread is the baseline's, at an address of its own
            if not math.isnan(of_energies):
                novelties = (float(columns.get(name, "nan")) for name in NOVELTY)
                steps.setdefault(f"line {row}" if step == "nan" else int(step), Answered()).add(spread, *novelties)
    return steps


def format_summary(summary: dict[str, Any], folder: Path, queue: str | None) -> str:
    """The summary in words, with where to look next."""
    lines = [
        f"{summary['steps']} steps, {summary['evaluations']} evaluations, "
        f"{_figure(summary['structures_per_bead_step'], '.3f')} force evaluations per bead and step, "
        f"{_figure(summary['seconds_per_step'], '.3f')} s a step:"
    ]
    if summary["steps"] is None:
        each = _figure(summary["seconds_per_evaluation"], ".3f")
        lines = [f"{summary['evaluations']} evaluations, {each} s each; i-PI's steps are not known"]
    parts = sorted(summary["seconds_per_step_by_part"].items(), key=lambda item: -item[1])
    lines += [f"  {1e3 * seconds:9.2f} ms  {'i-PI and waiting' if name == 'idle' else name}" for name, seconds in parts]
    if summary["force_spread_max"] is not None:
        lines.append(
            f"force spread: mean of the largest {summary['force_spread_mean']:.4f}, "
            f"most {summary['force_spread_max']:.4f} eV/Å; frames kept: {summary['frames_kept']}"
        )
    if summary["frames_dropped"]:
        lines.append(f"frames that were to be kept and are lost: {summary['frames_dropped']} (the log has why)")
    if (new := summary["novelty"]) is not None:
        largest = ", ".join(f"{value:.2f} for {WHOSE[part]}" for part, value in new["largest"].items())
        lines.append(
            f"novelty (1: the edge of training): at most {largest}; above {NOVELTY_EDGE:g} in {new['new_structures']} "
            f"of {new['structures']} structures, {new['new_atoms']} atoms"
        )
    lines += [
        f"not kept, for {PASSED[why]}: {about['frames']} frames"
        + ("" if about["force_spread_max"] is None else f", up to {about['force_spread_max']:.4f} eV/Å")
        for why, about in summary["frames_passed_over"].items()
    ]
    lines.append(f"all of this is in {folder / 'summary.json'}, every evaluation in {folder / NAME}")
    if queue:
        lines.append(f"the frames kept: beadwork queue list {queue}")
    lines.append(f"the whole run on one page: beadwork report {folder.resolve()}")
    return "\n".join(lines)


def _figure(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
