"""`beadwork learn LOOP.toml`: simulate, choose, label, train, validate, swap, and again.

    baseline = "models/mine/baseline"
    delta = "models/mine"            # the committee's folder to begin with
    labeller = "labeller.toml"       # as for `beadwork label`
    labels = 50                      # new ones a generation at most
    generations = 5                  # at most
    falling = 0.1                    # what falls by less than this part of itself has stopped falling
    start = "again"                  # each generation from the inputs; "continue": from where the last one ended;
                                     # "live": one simulation all along, which activates each new committee as it runs
    folder = "loop"                  # where all is kept (default: the name of this file without .toml)
    [simulations]                    # i-PI inputs by name; each runs for its steps with every committee
    zundel = "zundel/input.xml"
    [run]                            # options of `beadwork run`
    keep-force = [0.05, 0.5]         # default: the first committee's own, for all generations alike
    [train]                          # settings of `beadwork train`
    epochs = 60

One folder a generation, gen-000, gen-001, …, with its simulations, its committee and what was found out about it.
generation.json there says which stages are done, with their results and hashes; a stage that is not in it is done, or
gone on with, when the command is given again. All frames are in one queue, queue.db, so that none is labelled twice.
`current` names the newest committee: any server that was started with `--delta FOLDER/current` activates it as it runs.

The loop ends when neither the flagged rate nor the error on held-out frames falls any more, when no frame is selected,
or after the allowed number of generations; one more simulation then measures the last committee. The flagged rate is
the fraction of the steps at which the largest force spread of some bead reaches the lower threshold of `keep-force`, or
an atom's novelty for Δ that of `keep-novelty`. Atoms that are new to the baseline are reported, but neither counted nor
selected: labels for Δ do not change the baseline.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from beadwork.config import ServeConfig
from beadwork.disk import alone, reading, write_whole
from beadwork.errors import ConfigError, LabelError, SimulationError
from beadwork.events import NOVELTY_EDGE
from beadwork.harvest.queue import CLAIMED, FAILED, LABELLED, WAITING, Queue
from beadwork.harvest.select import default_window
from beadwork.ipi.named_files import plumed_files
from beadwork.ipi.simulation import Simulation, read_simulation
from beadwork.label import spec as labellers
from beadwork.label.choose import from_queue as choose
from beadwork.label.command import format_duration
from beadwork.label.run import label
from beadwork.label.selection import atoms_of, free, possible_rows
from beadwork.log import logger
from beadwork.loop import simulate
from beadwork.observe.record import Answered
from beadwork.potential.additions import hash_of
from beadwork.potential.bundle import (
    COMMITTEE,
    Card,
    committee_hash,
    load_card,
    load_committee,
    members_of,
    prefixed,
    sha256,
    write_pointer,
)
from beadwork.potential.potential import SHORT_HASH_CHARACTERS
from beadwork.settings import Rule, at_least, check, required, setting
from beadwork.toml import build, fit, read_toml
from beadwork.train.calibration import Errors, format_calibration, residuals
from beadwork.train.committee import train_committee
from beadwork.train.dataset import DATASET, Dataset, Example, from_queue, once
from beadwork.train.duplicates import among
from beadwork.train.plan import apart_of, references
from beadwork.train.settings import TrainSettings
from beadwork.train.validate import PAGE as VALIDATION
from beadwork.train.validate import validate, write_page

START_MODES = ("again", "continue", "live")
#: steps of a live simulation, which the loop ends itself
ENDLESS_STEPS = 10**9
#: seconds between two looks at rows that somebody else labels
LOOK_SECONDS = 2.0
RECORD = "generation.json"
CURRENT = "current"
#: the entry of `begin` with a hash of each simulation's input
INPUTS = "inputs"
#: options of `beadwork run` that the loop sets itself
LOOP_OPTIONS = ("simulation", "baseline", "delta", "queue", "out", "metrics", "keep_novelty_of")
#: the part whose novelty selects frames: labels for Δ do not change the baseline's
NOVELTY_OF = "delta"
#: the message where atoms are new to the baseline
NEW_TO_BASELINE = (
    "Atoms that are new to the baseline need labels of the baseline's own level and a new baseline; labels for Δ do "
    "not help, and they are not counted as flagged"
)

PART = Rule(lambda part: 0 <= part < 1, "it must be a part of 1: at least 0, and less than 1")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Loop:
    """A LOOP.toml; paths are absolute. Raises ConfigError for settings that cannot be run."""

    baseline: Path = field(metadata=required("bundle of the baseline model"))
    delta: Path = field(metadata=required("folder of the committee to begin with"))
    labeller: Path = field(metadata=required("LABELLER.toml, as for `beadwork label`"))
    simulations: Mapping[str, Path] = field(
        metadata=required(
            "i-PI inputs by name; each runs for its steps with every committee: its total_steps, less the step that a "
            "RESTART begins at"
        )
    )
    folder: Path = setting(Path(), "where all is kept", unset="the name of this file without .toml")
    labels: int = setting(50, "new ones of a generation at most", "labels", rule=at_least(1))
    generations: int = setting(5, "at most", "generations", rule=at_least(1))
    falling: float = setting(0.1, "what falls by less than this part of itself has stopped falling", "", rule=PART)
    start: str = setting(
        "again",
        "`again`: each generation from the inputs; `continue`: from where the last one ended; `live`: one simulation "
        "all along, which activates each new committee as it runs",
        choices=START_MODES,
    )
    run: Mapping[str, Any] = setting({}, "options of `beadwork run`, for all generations alike")
    train: TrainSettings = setting(TrainSettings(), "settings of `beadwork train`", unset="those of train.toml")

    def __post_init__(self) -> None:
        if not self.simulations:
            raise ConfigError("a loop needs a table [simulations] with one i-PI input at least")
        for name in self.simulations:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ConfigError(
                    f"a simulation cannot be called {name!r}: it names a folder", "use letters and digits"
                )
        check(self)
        for key in self.run:
            if key == "devices":
                raise ConfigError(
                    "[run] sets 'devices', which start a server each, and a simulation of the loop has one",
                    'take device = "cuda" for a GPU',
                )
            if key.replace("-", "_") in LOOP_OPTIONS:
                raise ConfigError(f"[run] sets {key!r}, which the loop sets itself", "leave it out")

    @property
    def low(self) -> float:
        """The lower threshold of the force spread, eV/Å, from which frames are selected."""
        return float(self.window[0]) if self.window else float("inf")

    @property
    def new(self) -> float:
        """The threshold of Δ's novelty from which frames are selected."""
        return float(self.run.get("keep-novelty", ServeConfig().keep_novelty))

    @property
    def add(self) -> dict[str, str]:
        """What the simulations add to the baseline by formula, and labels for Δ are without."""
        return dict(self.run.get("add", {}))

    def asks(self, step: Answered) -> bool:
        """Whether frames of this step are selected by Δ's spread or Δ's novelty."""
        spread = step.spread is not None and step.spread >= self.low
        return spread or (step.delta is not None and step.delta >= self.new)

    @property
    def window(self) -> list[float]:
        """`keep-force` of all generations, eV/Å: with a window that followed each committee, flagged rates of two
        generations could not be compared."""
        if "keep-force" in self.run:
            return list(self.run["keep-force"])
        first = load_committee(members_of([self.delta]))
        return default_window(first.usual if first else None, self.run.get("mark-spread", ServeConfig().mark_spread))


def read_loop(path: Path) -> Loop:
    """Read a LOOP.toml; paths in it count from its own folder. Raises ConfigError."""
    data = read_toml(path)
    here = path.parent.absolute()
    data.setdefault("folder", path.stem)
    if isinstance(data.get("delta"), list) and len(data["delta"]) == 1:  # as in the file of a run
        (data["delta"],) = data["delta"]
    loop: Loop = build(Loop, data, here, str(path))
    run = fit(ServeConfig, loop.run, here, f"{path}: [run]")
    # now, and not when the first simulation is started
    check(ServeConfig(**run))
    return replace(loop, run={name.replace("_", "-"): value for name, value in run.items()})


class Generation:
    """The record of one generation: the result of each stage, written when the stage is done."""

    def __init__(self, folder: Path, tell: Report = lambda text: None) -> None:
        self.folder = folder
        self._tell = tell
        self._file = folder / RECORD
        self.stages: dict[str, Any] = {}
        if self._file.exists():
            with self._reading():
                told = json.loads(self._file.read_text(encoding="utf-8"))
                self.stages = {stage: dict(found) for stage, found in told.items()}

    def do(self, stage: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of this stage, which is done now if it was not before."""
        if stage not in self.stages:
            self._tell(f"{self.folder.name}: {stage}")
            begin = time.monotonic()
            found = work()
            self.stages[stage] = {**found, "seconds": round(time.monotonic() - begin, 3), "ended": time.time()}
            # only now the stage counts as done: after a kill it is repeated, and every stage can be
            write_whole(self._file, json.dumps(self.stages, indent=1) + "\n")
        return dict(self.stages[stage])

    @property
    def flagged(self) -> float:
        """Flagged rate of its simulations, all steps together."""
        with self._reading():
            runs = self.stages["simulate"]["runs"].values()
            # a rate below 0 or above 1 would decide whether the loop goes on
            if not all(0 <= run["flagged"] <= run["steps"] for run in runs):
                raise ValueError("a simulation has more steps flagged than it has, or fewer than none")
            return float(sum(run["flagged"] for run in runs) / max(1, sum(run["steps"] for run in runs)))

    @property
    def begun_with(self) -> dict[str, Any]:
        """What `begin` recorded; the simulations, where an earlier release did not, by their results."""
        with self._reading():
            results = self.stages.get("simulate", {})
            return ({"simulations": sorted(results["runs"])} if results else {}) | dict(self.stages.get("begin", {}))

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self._file, ConfigError, "bring it back from a copy, or move its folder away to begin that anew")


def learn(path: Path, tell: Report) -> list[Generation]:
    """Run a loop, or continue it, until it ends; return all its generations.

    Safe to kill at any instant and to call again. Raises ConfigError where another process runs it or the models of a
    generation have changed, and any error of a stage.
    """
    loop = read_loop(path)
    loop.folder.mkdir(parents=True, exist_ok=True)
    busy = f"another beadwork learn is at work in {loop.folder}"
    # two loops in one folder would label the same frames and overwrite each other's stages
    with alone(loop.folder / "lock", busy, "wait for it, or end it"):
        learning = _Learning(loop, path.name, tell)
        try:
            return learning.run()
        finally:
            # an i-PI that nobody waits for would go on for its billion steps
            for run in learning.live.values():
                run.end()


def plan(path: Path) -> str:
    """What `learn` would do, or would go on with, as text; nothing is changed.

    Raises what `learn` does before its first stage.
    """
    loop = read_loop(path)
    simulations = _check_inputs(loop)
    spec = labellers.read_spec(loop.labeller)
    labeller = spec.labeller()
    committee = members_of([loop.delta])
    lines = [f"models      {loop.baseline}, and {len(committee)} of {loop.delta}"]
    longest = 0.0
    for name, simulation in simulations.items():
        frame = simulation.systems[0].frame()
        if loop.run.get("periodic") is False:
            frame = replace(frame, pbc=(False, False, False))
        formula = frame.to_atoms().get_chemical_formula()
        lines.append(f"simulate    {name}: {formula}, {simulation.nbeads} beads, {simulation.steps} steps")
        if spec.cut is None:
            longest = max(longest, labeller.seconds(frame))
    lines.append(f"select      from a force spread of {loop.low:g} eV/Å, or a novelty for Δ of {loop.new:g}, on")
    time = f", about {format_duration(longest)} each for the whole of the largest; rough" if longest else ""
    lines.append(f"label       {loop.labels} at most, {labeller.method}, {spec.jobs.at_once} at once{time}")
    lines.append(f"train       {loop.train.members} members, {loop.train.epochs} epochs at most")
    lines.append(f"generations {loop.generations} at most; all is kept in {loop.folder}")
    for done in generations(loop.folder):
        _check_settings(loop, done)
        lines.append(f"on record   {done.folder.name}: {', '.join(done.stages)}")
    return "\n".join(lines)


def _check_inputs(loop: Loop) -> dict[str, Simulation]:
    """Read the simulations and the models, so that a wrong one ends here, not after hours of training.

    Raises ConfigError, ModelError and SimulationError.
    """
    simulations = {name: read_simulation(xml, directory=xml.parent) for name, xml in loop.simulations.items()}
    for simulation in simulations.values():
        plumed_files(simulation)
        if not simulation.steps:
            raise ConfigError(
                f"{simulation.path} begins at step {simulation.step} and ends at step {simulation.total_steps}, so it "
                "has no step to do with any committee",
                "raise its <total_steps>: those of all generations are as many as it has left",
            )
    members = members_of([loop.delta])
    # one bundle can be a whole committee, whose members are heads on one trunk
    several = len(members) > 1 or load_card(members[0]).heads is not None
    if not (loop.delta / COMMITTEE).exists() or not several:
        raise ConfigError(f"delta is {loop.delta}, which is no folder of a committee of two members or more")
    count = len(members) if len(members) > 1 else load_card(members[0]).about.get("heads")
    if loop.start == "live" and count != loop.train.members:
        # its server would refuse what took hours to train: i-PI's outputs of extras have a column for each member
        raise ConfigError(
            f"{loop.delta} has {count} members and [train] makes {loop.train.members}, and a live simulation cannot "
            "change their number",
            f'set members = {count} in [train], or start = "continue"',
        )
    load_card(loop.baseline)
    return simulations


def _compared(loop: Loop) -> dict[str, Any]:
    """The settings with which generations are compared, as `begin` records them: with others, flagged rates of two
    generations would be of different things."""
    return {
        "simulations": sorted(loop.simulations),
        INPUTS: {name: _input_hash(xml) for name, xml in loop.simulations.items()},
        "start": loop.start,
        "keep-force": loop.window,
        "keep-novelty": loop.new,
    }


def _input_hash(xml: Path) -> str:
    """Of an input and of the files that it names. Raises SimulationError."""
    simulation = read_simulation(xml, directory=xml.parent)
    named = [*simulation.files, *plumed_files(simulation)]
    hashes = [simulation.sha256, *(sha256(simulation.directory / file) for file in named)]
    return prefixed(hashlib.sha256(" ".join(hashes).encode()).hexdigest())


def _check_settings(loop: Loop, begun: Generation) -> None:
    """Raise ConfigError where a generation was begun with other simulations, thresholds or starts than the loop has."""
    was = begun.begun_with
    for name, now in _compared(loop).items():
        if name not in was or was[name] == now:
            continue
        what = f"{begun.folder} was begun with {name} = {was[name]}, and the loop's file says {now}"
        if name == INPUTS:
            changed = [str(xml) for one, xml in loop.simulations.items() if was[name].get(one) != now[one]]
            what = f"{', '.join(changed)}, or a file that it names, is not what {begun.folder} was begun with"
        raise ConfigError(
            f"{what}: generations could not be compared",
            "put it back, or begin another loop with it (another `folder`; `delta` can be the newest committee)",
        )


def generations(folder: Path) -> list[Generation]:
    """All generations that a loop has so far."""
    return [Generation(file.parent) for file in sorted(folder.glob(f"gen-*/{RECORD}"))]


def committee_of(loop: Loop, number: int) -> Path:
    """The committee of generation `number`: the first is the user's, later ones are trained by the one before."""
    return loop.delta if number == 0 else loop.folder / f"gen-{number - 1:03d}" / "committee"


def why_stop(loop: Loop, before: Generation, now: Generation) -> str | None:
    """The reason to stop after a generation's simulations, or None."""
    errors = before.stages["validate"]
    rates = before.flagged, now.flagged
    pairs = [("the flagged rate", *rates)]
    for name in (
        "force",
        "energy",
    ):  # forces where there are any: they are many per frame, so their error is less noisy
        if errors["old"].get(name) and errors["new"].get(name):
            pairs.append((f"the {name} error on frames held out", errors["old"][name][0], errors["new"][name][0]))
            break
    # one of the two is enough: a smaller error may leave the rate, and the other way round
    if any(new < (1 - loop.falling) * old for _, old, new in pairs):
        return None
    return "; ".join(f"{name} went from {old:.4g} to {new:.4g}" for name, old, new in pairs) + (
        f": nothing fell by {100 * loop.falling:g} % any more"
    )


class _Learning:
    """One call of `learn`."""

    def __init__(self, loop: Loop, name: str, tell: Report) -> None:
        self.loop, self.name, self.tell = loop, name, tell
        self.spec = labellers.read_spec(loop.labeller)
        self.queue = Queue(loop.folder / "queue.db", create=True)
        self.live: dict[str, simulate.Simulation] = {}
        self.options = {
            **loop.run,
            "keep-force": loop.window,
            "keep-novelty-of": NOVELTY_OF,
            "baseline": str(loop.baseline),
            "queue": str((loop.folder / "queue.db").absolute()),
        }

    def run(self) -> list[Generation]:
        loop = self.loop
        _check_inputs(loop)
        if not (loop.folder / CURRENT).exists():  # else it names the committee of the last generation
            write_pointer(loop.folder / CURRENT, loop.delta)
        done: list[Generation] = []
        for number in range(loop.generations + 1):  # one more simulation than trainings, to measure the last committee
            now = Generation(loop.folder / f"gen-{number:03d}", self.tell)
            now.folder.mkdir(exist_ok=True)
            committee = committee_of(loop, number)
            # of an earlier call, or of this one: an input may be edited while a generation is trained
            for begun in (*done[-1:], now):
                if "begin" in begun.stages:
                    _check_settings(loop, begun)
            # a generation that was begun in an earlier call: its results are of the models of that time
            if "begin" in now.stages:
                self._same_models(now, committee)
            now.do("begin", partial(self._begin, committee))
            now.do("simulate", partial(self._simulate, now, done, committee))
            # after the simulations, since only these say what the new committee is worth
            reason = why_stop(loop, done[-1], now) if done else None
            done.append(now)
            if number == loop.generations:
                reason = reason or f"{loop.generations} generations were allowed"
            if reason is None:
                chosen = now.do("choose", partial(self._choose, done[:-1]))["rows"]
                # no frame waits that can be labelled: another training would have the same labels
                if not chosen:
                    reason = "no frame is asked for any more"
            if reason is not None:
                now.do("end", partial(dict, reason=reason))
                self.tell(f"{now.folder.name}: the end, for {reason}")
                break
            now.do("label", partial(self._label, chosen))
            now.do("train", partial(self._train, now, committee))
            now.do("validate", partial(self._validate, now, committee))
            now.do("swap", partial(self._swap, now))
        return done

    def _begin(self, committee: Path) -> dict[str, Any]:
        """Which models serve this generation, with what it is compared, and where the queue stands."""
        cards = self._cards(committee)
        return {
            "committee": self._place(committee),
            "hash": self._hash(committee),
            "models": {self._place(card.path): card.hash for card in cards},
            "dataset": cards[-1].about.get("dataset"),
            **_compared(self.loop),
            # rows above it are of this generation's simulations, also after a kill
            "last_row": max((row.id for row in self.queue.rows()), default=0),
        }

    def _cards(self, committee: Path) -> list[Card]:
        """Those of the models that serve, in the order that the server hashes them in."""
        return [load_card(model) for model in (self.loop.baseline, *members_of([committee]))]

    def _hash(self, committee: Path) -> str:
        """The same hash as the server's."""
        return served(self.loop.baseline, committee, self.options.get("weights"), self.loop.add)

    def _same_models(self, now: Generation, committee: Path) -> None:
        """Raise ConfigError where a generation was begun with other models, to which all its results belong."""
        was, cards = now.stages["begin"], self._cards(committee)
        if (found := self._hash(committee)) != was["hash"]:
            changed = [str(card.path) for card in cards if card.hash not in was["models"].values()]
            raise ConfigError(
                f"{now.folder} was begun with the models {was['hash']}, and they are {found} now "
                f"({', '.join(changed) or 'fewer, in another order, or with other weights'})",
                "put back the models that it began with, or begin a loop with these in another folder",
            )

    def _place(self, path: Path) -> str:
        """A path as the records have it: from the loop's folder, where it is in there."""
        return str(path.relative_to(self.loop.folder) if path.is_relative_to(self.loop.folder) else path)

    def _simulate(self, now: Generation, done: Sequence[Generation], committee: Path) -> dict[str, Any]:
        runs = {}
        # as beadwork.out has it: what other models have answered does not count for this generation
        serving = now.stages["begin"]["hash"][:SHORT_HASH_CHARACTERS]
        for name, xml in self.loop.simulations.items():
            if self.loop.start == "live":
                folder = self._follow(name, xml, serving, done)
            else:
                folder = now.folder / name
                goes_on = self.loop.start == "continue" and done
                simulate.prepare(xml, folder, simulate.end_of(done[-1].folder / name) if goes_on else None)
                # the members and not the pointer: this simulation is of this committee from its first step to its last
                members = [str(member) for member in members_of([committee])]
                run = simulate.start(folder, {**self.options, "delta": members}, len(self._kept(now, folder)))
                if run is not None:
                    run.finish()
            steps = simulate.answered(folder, serving)
            if not steps:
                raise SimulationError(
                    f"no step in {folder} was evaluated by {serving}, the models with which {now.folder.name} began",
                    f"remove {folder} and run the command again",
                )
            # a rate of all steps would count those as calm whose forces no head was asked for
            known = [step for step in steps if step.spread is not None]
            flagged, kept = sum(map(self.loop.asks, known)), self._kept(now, folder)
            novelty = {
                "baseline": _summed([step.baseline for step in steps]),
                "delta": _summed([step.delta for step in steps]),
            }
            runs[name] = {
                "steps": len(known),
                "flagged": flagged,
                "kept": kept,
                "novelty": novelty,
                "simulations": sorted(simulate.simulations(folder)),
            }
            said = f"{now.folder.name}: {name}: {flagged} of {len(known)} steps flagged, {len(kept)} frames kept"
            self.tell(f"{said}{_format_novelty(novelty, len(steps))}")
        return {"runs": runs}

    def _follow(self, name: str, xml: Path, serving: str, done: Sequence[Generation]) -> Path:
        """Let one simulation run on until it has done its steps with this committee; return its folder."""
        folder = self.loop.folder / "live" / name
        if name in self.live and not simulate.steps_are_told(xml):
            self.live.pop(name).end()  # it can activate a committee only at i-PI's next start, which follows
        # a running simulation keeps the old committee until the server has loaded and verified the new one
        before = done[-1].stages["begin"]["hash"][:SHORT_HASH_CHARACTERS] if name in self.live else None
        # the loop ends it, after as many steps with each committee as the input has in all
        simulate.prepare(xml, folder, steps=ENDLESS_STEPS)
        if name not in self.live:
            options = {**self.options, "delta": [str(self.loop.folder / CURRENT)]}
            # 0: what the generation of a killed loop has kept must not lessen what later ones may keep
            run = simulate.start(folder, options, 0)
            if run is None:
                raise ConfigError(f"{folder} has come to its end after {ENDLESS_STEPS} steps", "take another folder")
            self.live[name] = run
        steps = read_simulation(xml, directory=xml.parent).steps
        self.live[name].until(serving, steps, before)
        return folder

    def _kept(self, now: Generation, folder: Path) -> list[int]:
        """Rows that a simulation has put into the queue in this generation."""
        # by simulation and row: a live simulation has put rows of earlier generations there, too
        mine, last = simulate.simulations(folder), now.stages["begin"]["last_row"]
        return [row.id for row in self.queue.rows() if row.id > last and row.kept.simulation in mine]

    def _choose(self, done: Sequence[Generation]) -> dict[str, Any]:
        """Rows to label, the highest score first, without those that cannot be labelled or that the baseline does not
        know. Where there are none, those that somebody else labels, or has labelled since the last training."""
        # before the choice, or it could consist of frames that no labeller can do, generation after generation
        candidates = possible_rows(self.queue, self.spec, self._report_outcome, self.loop.baseline)
        rows, choice = choose(
            self.queue,
            candidates,
            self.loop.baseline,
            self.loop.labels,
            lambda row: atoms_of(row, self.spec),
            NOVELTY_OF,
        )
        if not rows:
            before = done[-1].stages["label"] if done else {"known": []}
            known = before.get("known")  # of an earlier release: unknown
            rows = [
                row.id
                for row in self.queue.rows()
                if row.status == CLAIMED or (row.status == LABELLED and known is not None and row.id not in known)
            ]
        if choice is None:
            return {"rows": rows, "waiting": len(candidates)}
        self.tell(str(choice))
        return {"rows": rows, "waiting": len(candidates), "choice": str(choice)}

    def _report_outcome(self, outcome: Any, of: int) -> None:
        said = f"row {outcome.id}: {outcome.status}{f': {outcome.reason}' if outcome.reason else ''}"
        if outcome.status == FAILED:
            logger.warning("%s", said)  # seen with --quiet too
        else:
            self.tell(said)

    def _label(self, chosen: Sequence[int]) -> dict[str, Any]:
        while True:
            label(self.queue, self.spec, ids=chosen, watch=self._report_outcome)
            if not self._some_are_free(chosen):
                break
        rows = [self.queue.get(id) for id in chosen]
        labelled = [row.id for row in rows if row.status == LABELLED]
        # training again on the same labels would change nothing
        if not labelled:
            reasons = {row.reason for row in rows if row.status == FAILED}
            raise LabelError(
                f"no frame of this generation was labelled ({'; '.join(map(str, reasons))})",
                f"correct {self.loop.labeller}, let them wait again (beadwork label --again), and run the command "
                "again",
            )
        return {
            "labelled": labelled,
            "set_aside": [row.id for row in rows if row.status == FAILED],
            # also what somebody else has labelled: what the training learns from must not change while it is repeated
            "known": [row.id for row in self.queue.rows(status=LABELLED)],
        }

    def _some_are_free(self, chosen: Sequence[int]) -> bool:
        """Wait while all of these rows that have no label yet are claimed by somebody else; False where all are done.

        A claim that is not renewed ends after its lease, so this waits for no longer than somebody computes them.
        """
        said = ""
        while left := [row for row in map(self.queue.get, chosen) if row.status in (WAITING, CLAIMED)]:
            now = self.queue.now()
            if any(free(row, now) for row in left):
                return True
            claims = ", ".join(f"row {row.id} ({row.worker})" for row in left)
            if claims != said:
                said = claims
                self.tell(f"somebody else labels {claims}: waits for it, and takes over what is not renewed in time")
            time.sleep(LOOK_SECONDS)
        return False

    def _train(self, now: Generation, committee: Path) -> dict[str, Any]:
        out = now.folder / "committee"
        # a committee of another program has no dataset, and its weights may be of another form
        previous = committee if (committee / DATASET).exists() else None
        examples: dict[str, Example] = {}
        if previous is not None:
            # by hash: labels of the queue that the previous dataset has already are the same examples
            examples.update((e.hash, e) for e in Dataset.read(previous).examples)
        # not those of dataset.json, which lacks what was left out at the borders: without these frames it would be
        # divided differently after a kill. Labels that came later belong to the next generation
        known = now.stages.get("label", {}).get("known")  # of an earlier release: unknown
        method = self.spec.labeller().method
        labels = from_queue(self.queue, self.loop.baseline, method, known, self.loop.add)
        examples.update((e.hash, e) for e in labels)
        command = f"beadwork learn {self.name} ({now.folder.name})"
        # a frame of the first committee's own labels may have been labelled again
        learned = once(list(examples.values()), str(self.loop.folder))
        train_committee(learned, self.loop.baseline, out, self.loop.train, previous, self.tell, command)
        dataset = Dataset.read(out)
        return {
            "dataset": dataset.hash,
            "frames": len(dataset.training),
            "held_out": len(dataset.testing),
            "members": {member.name: load_card(member).hash for member in members_of([out])},
        }

    def _validate(self, now: Generation, committee: Path) -> dict[str, Any]:
        out = now.folder / "committee"
        testing = Dataset.read(out).testing
        if not testing:
            return {"frames": 0, "old": {}, "new": {}}
        found = validate(out)
        write_page(found, now.folder / VALIDATION)
        # frames that are new in this generation may be held out now and have been trained on by nobody; those that the
        # old committee was trained on would flatter it
        common = unseen(testing, [committee])
        calibration = format_calibration(found.calibration) if found.calibration else None
        return {
            "frames": len(common),
            "old": errors_of(committee, common, out),
            "new": errors_of(out, common, out),
            "calibration": calibration,
        }

    def _swap(self, now: Generation) -> dict[str, Any]:
        # last: whoever watches the file gets a committee that was trained, measured and recorded
        write_pointer(self.loop.folder / CURRENT, now.folder / "committee")
        return {"current": str((now.folder / "committee").relative_to(self.loop.folder))}


def _summed(novelty: Sequence[float | None]) -> dict[str, float | int] | None:
    """The largest novelty of these steps and at how many it was above the edge of training; None where unknown."""
    known = [value for value in novelty if value is not None]
    return {"largest": max(known), "new": sum(value > NOVELTY_EDGE for value in known)} if known else None


def _format_novelty(novelty: Mapping[str, Mapping[str, float] | None], steps: int) -> str:
    """Format the novelty of a simulation for each part, with what to do about the baseline's."""
    parts = {"delta": "Δ", "baseline": "the baseline"}
    known = [(name, about) for part, name in parts.items() if (about := novelty.get(part)) is not None]
    said = "".join(
        f"; new to {name} at {about['new']} of {steps} steps (novelty up to {about['largest']:.2f})"
        for name, about in known
    )
    baseline = novelty.get("baseline")
    return said + (f". {NEW_TO_BASELINE}" if baseline is not None and baseline["new"] else "")


def errors_of(committee: Path, examples: Sequence[Example], reference: Path) -> dict[str, Any]:
    """Root mean square errors with error bars: energy in meV/atom, force in meV/Å; nothing without examples.

    reference: a committee that was trained here, for its reference energies and the steps between its blocks.
    """
    if not examples:
        return {}
    first = members_of([reference])[0]
    found = residuals(examples, members_of([committee]), references(first), apart_of(first))

    def in_milli(errors: Errors | None) -> list[float] | None:
        return None if errors is None else [1e3 * value for value in errors.rmse]

    return {
        "energy": in_milli(found.energy),
        "force": in_milli(found.forces),
        "baseline_energy": in_milli(found.baseline_energy),
        "baseline_force": in_milli(found.baseline_forces),
    }


def served(
    baseline: Path, committee: Path, weights: Sequence[float] | None = None, add: Mapping[str, str] | None = None
) -> str:
    """The hash that a server gives a committee on this baseline, with these weights or those of its card.

    add: what is added to the baseline by formula.
    """
    members = members_of([committee])
    known = load_committee(members)
    if weights is None and known is not None:
        weights = [known.weights[member.resolve().name] for member in members]
    added = [hash_of(kind, value) for kind, value in (add or {}).items()]
    hashes = [load_card(baseline).hash, *added, *(load_card(member).hash for member in members)]
    return committee_hash(hashes, weights or ())


def unseen(testing: Sequence[Example], committees: Sequence[Path]) -> list[Example]:
    """The examples on which none of these committees was trained."""
    learned = [
        frame for committee in committees if (committee / DATASET).exists() for frame in Dataset.read(committee).learned
    ]
    # by structure: the same frame may have been labelled under two rows
    seen = among([e.frame for e in testing], learned)
    return [e for e, one in zip(testing, seen, strict=True) if not one]
