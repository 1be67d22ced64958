"""One run from configuration to exit: load, serve, harvest, record. What `beadwork serve` and `beadwork run` share."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from logging import ERROR, WARNING
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ase.data import chemical_symbols

from beadwork.config import ServeConfig
from beadwork.disk import ignore_closed_terminal, writing
from beadwork.errors import BeadworkError, ConfigError, SimulationError
from beadwork.events import Event, Note
from beadwork.harvest.keeper import Keeper
from beadwork.ipi.advice import advice
from beadwork.ipi.output_steps import Written
from beadwork.ipi.process import LISTEN, OwnIpi
from beadwork.ipi.simulation import Simulation, read_simulation
from beadwork.log import logger
from beadwork.observe.last import save_last_frames
from beadwork.observe.metrics import Metrics
from beadwork.observe.pace import Pace
from beadwork.observe.progress import Progress
from beadwork.observe.record import Record, format_summary
from beadwork.observe.status import StatusFile, claimed
from beadwork.potential.bundle import unnamed_baseline
from beadwork.potential.limits import Thresholds
from beadwork.potential.potential import Potential
from beadwork.report.picture import draw
from beadwork.serve.assemble import join
from beadwork.serve.hot_swap import Swap
from beadwork.serve.server import Server
from beadwork.serve.service import Service
from beadwork.signals import handled, interrupt


class Session:
    """One run: from a configuration to an exit code."""

    def __init__(self, config: ServeConfig, threads: str, watchers: Sequence[Callable[[Event], None]] = ()) -> None:
        """threads: the message of `set_threads`. watchers: called with every event, besides the session's own."""
        self._config = config
        self._folder = Path(config.out)
        self._threads = threads
        self._watchers = list(watchers)
        self._signal = 0  # the signal that ends the run
        self._answering = False  # a signal lets the present evaluation finish, instead of ending the process at once
        self._ended: BaseException | None = None  # the exception that ended the run
        self._ipi: OwnIpi | None = None
        self._ipi_code = 0
        self._restart: int | None = None  # when the RESTART that we found was written
        self._swap: Swap | None = None
        self._outputs: Written | None = None  # i-PI's

    def run(self, *, start_ipi: bool) -> int:
        """Serve, with an i-PI of our own if `start_ipi`, and return the exit code.

        Raises BeadworkError, and Interrupted for a signal that comes before the server waits for requests.
        """
        end, reload = self._on_signal, self._on_reload
        with handled({signal.SIGINT: end, signal.SIGTERM: end, signal.SIGHUP: reload}):
            with ExitStack() as stack:
                self._run(stack, start_ipi)
            return self._end()[0]

    def _run(self, stack: ExitStack, start_ipi: bool) -> None:
        """Serve to the end. Every part registers its clean-up on the stack, which runs in reverse order."""
        config = self._config
        simulation = read_simulation(Path(config.simulation), config.sockets_prefix)
        # a second run typed in the folder of a live one must not touch a file of it
        stack.enter_context(claimed(self._folder))
        if start_ipi:
            self._ipi = OwnIpi(simulation, config.sockets_prefix)
            stack.enter_context(self._ipi.alone())
        # before i-PI starts: only a RESTART that is newer tells how far this run came
        self._restart = _written(simulation.directory / "RESTART")

        total = simulation.total_steps
        pace = Pace(simulation.systems[0].timestep, len(config.at) or 1, simulation.step)
        # filled when the models are loaded, which takes long enough for `beadwork status` to be asked before
        services: list[Service] = []
        facts = partial(_facts, services)
        status = StatusFile(self._folder, pace, total, facts, self._watch)
        # registered first, so closed last: by then the exit code is known, that of any failing clean-up too
        self._later(stack, lambda: status.close(*self._end()))
        found, notes = join(config, simulation)
        services += found

        self._outputs = Written(simulation.outputs, simulation.step)
        limits = Thresholds.of(config)
        self._swap = Swap(config, limits, self._watch)
        self._later(stack, self._swap.close)  # of all but the status the last, for a check under way takes its time
        progress = Progress(pace, total)
        record = Record(self._folder, _elements(services), self._about(simulation, services))
        self._later(stack, lambda: self._finish(simulation, services, record))
        self._later(stack, progress.close)
        # in this order: progress and status show what pace has counted of the same event
        self._watchers += [pace, progress, record, status]
        notes = [self._threads, *self._remarks(simulation), *notes]
        if config.metrics is not None:
            metrics = Metrics(config.metrics, pace, total, facts)
            self._later(stack, metrics.close)
            self._watchers.append(metrics)
            notes.append(f"metrics for Prometheus are at {metrics.address}")
        for note in notes:
            self._watch(Note(note))

        # after the record, so it is closed before: the summary has the frames that the queue could not take
        harvest = self._keeper(simulation, services)
        if harvest is not None:
            self._later(stack, partial(_close_keeper, harvest, record))
        for service in services:
            if service.potential.members:
                self._swap.serve(str(service.line.address), service.potential, service.numbers, service.ring)
        self._answering = True
        # before i-PI is started, so that it is ended too where the rest of the start fails
        self._later(stack, self._end_ipi)
        self._meet_ipi(services)
        server = self._server(simulation, services, harvest, limits)
        self._later(stack, lambda: self._last_words(server))
        server.run()

    def _watch(self, event: Event) -> None:
        with writing(Path("the log")):  # what a watcher says on a terminal, or into a file on a full disk
            for watcher in self._watchers:
                watcher(event)

    def _later(self, stack: ExitStack, part: Callable[[], object]) -> None:
        """Register the clean-up of a part of the run, which runs whatever happens to the others.

        The run ends with its first error; later ones are printed.
        """

        def leave(kind: type[BaseException] | None, ended: BaseException | None, trace: TracebackType | None) -> None:
            self._answering = True  # from here on all is put in order, whatever comes
            self._ended = ended
            try:
                part()
            except BeadworkError as error:
                if ended is None:
                    raise
                # a full disk fails several parts with the same sentence, which is said once
                if str(error) != str(ended):
                    _say(str(error), ERROR)

        stack.push(leave)

    def _remarks(self, simulation: Simulation) -> list[str]:
        """Messages about the input, before it is served."""
        servers = self._config.servers
        found = [str(one) for one in advice(simulation, servers or 1)]
        if servers > 1:
            found.append(
                f"one of {servers} servers, which does not know which bead is which; its steps are i-PI's as "
                "long as all of them answer, and go faster where one is missing"
            )
        return found

    def _keeper(self, simulation: Simulation, services: Sequence[Service]) -> Keeper | None:
        """The keeper of frames for the queue; None without a queue. Raises ConfigError, QueueError."""
        if not self._config.queue:
            return None
        if not any(len(service.potential.members) > 1 for service in services):
            raise ConfigError(
                "a queue keeps what the committee is unsure of, but no forcefield is served two Δ models or more",
                "give more of them with --delta, or no --queue",
            )
        return Keeper(self._config, self._config.mark_spread, simulation.sha256, self._watch)

    def _server(
        self, simulation: Simulation, services: Sequence[Service], harvest: Keeper | None, limits: Thresholds
    ) -> Server:
        config = self._config
        return Server(
            services,
            # our own i-PI reads its input before it listens, however short the user's patience is
            patience=max(config.patience, LISTEN) if self._ipi else config.patience,
            silence=config.silence,
            harvest=harvest,
            watch=self._watch,
            stopped=self._stopped,
            marks=limits,
            # where i-PI was started by the user, its folder is found from its process, and not guessed
            directory=simulation.directory if self._ipi else None,
            swap=self._swap,
            written=self._outputs,
        )

    def _meet_ipi(self, services: Sequence[Service]) -> None:
        """Start our own i-PI, or report where another one is expected."""
        if self._ipi is None:
            where = ", ".join(str(service.line.address) for service in services)
            patience = self._config.patience
            self._watch(Note(f"i-PI is looked for at {where}, for {patience:g} s (--patience)"))
            return
        pid = self._ipi.start(self._folder, lambda text: self._watch(Note(text)))
        for service in services:
            service.line.pid = pid

    def _end_ipi(self) -> None:
        if self._ipi is None:
            return
        self._ipi_code = self._ipi.end(lambda: bool(self._signal))
        if self._ipi_code:
            said = self._folder / "i-pi.log"
            self._watch(Note(f"i-PI ended with exit code {self._ipi_code}; what it said is in {said}", WARNING))

    def _end(self) -> tuple[int, str]:
        """The exit code and its reason: an exception, a signal, or i-PI's own exit code."""
        if self._ended is not None:
            # 1 is what Python ends with for an exception that is a fault of ours
            return getattr(self._ended, "exit_code", 1), str(self._ended)
        if self._signal:
            return 128 + self._signal, f"ended by {signal.Signals(self._signal).name}"
        code = self._ipi_code
        return code, f"i-PI ended with exit code {code}; what it said is in i-pi.log" if code else ""

    def _about(self, simulation: Simulation, services: Sequence[Service]) -> dict[str, Any]:
        """The facts of this run that `beadwork report` needs, with paths relative to the folder of our outputs."""
        system = simulation.systems[0]
        queue = self._config.queue

        def seen_from_there(path: Path | str) -> str:
            return os.path.relpath(Path(path).resolve(), self._folder.resolve())  # which may be a link to elsewhere

        return {
            "simulation": seen_from_there(simulation.path),
            "simulation_sha256": simulation.sha256,
            "directory": seen_from_there(simulation.directory),
            "outputs": f"{system.prefix}_{simulation.prefix}" if system.prefix else simulation.prefix,
            "properties": {
                output.name: {"stride": output.stride, "columns": output.columns} for output in simulation.properties
            },
            "trajectories": simulation.trajectories,
            # a URL may hold a password, and beadwork.out is there for others to read
            "queue": None if not queue else "elsewhere" if "://" in queue else seen_from_there(queue),
            # steps of beadwork.out count from here, those of i-PI's outputs from its own 0
            "first_step": simulation.step,
            "time_step_fs": system.timestep,
            "temperature_K": simulation.temperature,
            "biased": bool(system.bias),
            "beads": system.nbeads,
            # of each <force>: fewer where it is contracted, and by what it is multiplied
            "component_beads": [part.nbeads for part in system.forces],
            "component_weights": [part.share for part in system.forces],
            # at which i-PI ends by its input, what moves the atoms, and how many there are of each element
            "total_steps": simulation.total_steps,
            "motions": system.motions,
            "smotions": simulation.smotions,
            "systems": len(simulation.systems),
            "composition": dict(Counter(chemical_symbols[z] for z in system.numbers if z)),
            # the same by i-PI's names, and the masses of these
            "labels": system.labels,
            "masses": system.label_masses,
            # whether an energy of any evaluation can be divided by the same number of atoms
            "one_composition": len({tuple(sorted(one.numbers)) for one in simulation.systems}) == 1,
            "periodic": self._config.periodic,
            "dipole_jumps": any(service.dipole_jumps for service in services),
            # whether what drove i-PI is the plain mean that its `committee_pot` has
            "plain_mean": all(
                not service.potential.weighs and len(set(service.potential.weights.tolist())) < 2
                for service in services
            ),
            # by what energies of its `committee_pot` are multiplied in the potential; None where that is not known
            "committee_share": _committee_share(simulation, services),
            # of the part that has the members: a baseline at an address of its own has no alpha
            "energy_alpha": max(services, key=lambda service: len(service.potential.weights)).potential.energy_alpha,
            "spread_of_delta_alone": any(service.potential.spread_of_delta_alone for service in services),
            "models": {seen_from_there(card.path): card.hash for card in services[0].potential.cards}
            | services[0].potential.added,
            "unnamed_baseline": _unnamed(services[0].potential),
            "started": time.time(),
        }

    def _last_words(self, server: Server) -> None:
        """Write the last frames of a run that did not end normally; a failure of that is printed."""
        # where i-PI ended in order, its own RESTART has the last structures
        by_itself = not (self._signal or self._ended or (self._ipi is not None and self._ipi.stopped()))
        last = [] if by_itself else server.last()
        if not last:
            return
        count = sum(len(one.frames) for one in last)
        which = "could not be answered for" if server.refused else "were answered last"
        try:
            _say(f"the {count} frames that {which} are in {save_last_frames(last, self._folder)}")
        except BeadworkError as error:
            _say(f"the {count} frames that {which} are lost: {error}", ERROR)

    def _stopped(self) -> bool:
        return bool(self._signal) or (self._ipi is not None and self._ipi.stopped() is not None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if not self._answering:
            interrupt(number, frame)

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        if self._swap is not None:
            self._swap.ask()

    def _finish(self, simulation: Simulation, services: Sequence[Service], record: Record) -> None:
        """Write summary.json, print the summary, and draw the picture."""
        folder = self._folder
        steps = self._steps_done(simulation)
        # of our own i-PI the RESTART that it writes at its end has the exact count
        come_to = None if self._ipi is not None or self._outputs is None else self._outputs.look().step
        # structures per bead and step mean something for one forcefield alone that has all beads
        pattern = services[0].pattern if len(services) == 1 and services[0].servers == 1 else None
        summary = record.summary(steps, pattern.step if pattern else None, come_to)
        summary["exit_code"], summary["why"] = self._end()
        record.close(summary)
        if not record.answered:
            return  # what ended the run is all there is to say
        with writing(Path("the summary's words")), ignore_closed_terminal():
            print(format_summary(summary, folder, self._config.queue), flush=True)
        with writing(folder / "run.png"):
            try:
                said = draw(folder)
            except OSError:
                raise  # a full disk has a code
            except Exception as error:  # noqa: BLE001 - a picture that fails must not change the run's exit code
                said = f"no picture: {type(error).__name__}: {error}"
            with ignore_closed_terminal():
                print(said, flush=True)

    def _steps_done(self, simulation: Simulation) -> int | None:
        """The steps that i-PI has done, from the RESTART that it writes at its end; None without one."""
        restart = simulation.directory / "RESTART"
        # a RESTART of before was there already: i-PI was killed, or ended before it wrote one
        if self._ipi is None or _written(restart) in (None, self._restart):
            return None
        try:
            return read_simulation(restart).step - simulation.step
        except SimulationError as error:
            logger.warning("i-PI's steps cannot be counted: %s", error)
            return None


def _elements(services: Sequence[Service]) -> list[str]:
    """Symbols of the elements with a spread or a novelty, heaviest first."""
    served = [
        service.numbers for service in services if len(service.potential.members) > 1 or service.potential.knows_novelty
    ]
    return [chemical_symbols[z] for z in sorted({int(z) for numbers in served for z in numbers}, reverse=True)]


def _close_keeper(harvest: Keeper, record: Record) -> None:
    try:
        harvest.close()
    finally:
        record.dropped = harvest.lost


def _unnamed(potential: Potential) -> list[str]:
    """Names of the Δ models that are summed with a baseline which their cards do not name."""
    return [card.name for card in unnamed_baseline(potential.member_cards)] if potential.baseline_cards else []


def _committee_share(simulation: Simulation, services: Sequence[Service]) -> float | None:
    """By what energies in `committee_pot` are multiplied in the first system's potential."""
    system = simulation.systems[0]
    senders = {service.forcefield for service in services if len(service.potential.members) > 1}
    # of an <ffcommittee> each member may have a socket of its own
    return system.share("committee_pot", senders or {part.forcefield for part in system.forces})


def _facts(services: Sequence[Service]) -> dict[str, Any]:
    """The active engines, and the hash of all models as in the queue."""
    potentials = [service.potential for service in services]
    if not potentials:  # they are being loaded
        return {"engines": [], "committee": None, "spread_of_delta_alone": False}
    # a dictionary keeps the order of the models, and names an engine once
    engines = dict.fromkeys(engine.name for potential in potentials for engine in potential.engines)
    # the forcefields' potentials are parts of one, so each has all cards; only those with members are exchanged
    answers = next((p for p in potentials if p.members), potentials[0])
    return {
        "engines": list(engines),
        "committee": answers.identity,
        "spread_of_delta_alone": answers.spread_of_delta_alone,
    }


def _say(text: str, level: int = WARNING) -> None:
    """Log a message at the end; a log on a full disk cannot take it."""
    with suppress(OSError):
        logger.log(level, "%s", text)


def _written(path: Path) -> int | None:
    """The time of a file's last change; None where there is no file. Only for comparison: the clock may be wrong."""
    return path.stat().st_mtime_ns if path.exists() else None
