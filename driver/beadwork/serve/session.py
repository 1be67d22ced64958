"""One run from configuration to exit: load, serve, harvest, record. What `beadwork serve` and `beadwork run` share."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ase.data import chemical_symbols

from beadwork.config import ServeConfig
from beadwork.disk import telling, writing
from beadwork.errors import BeadworkError, ConfigError, SimulationError
from beadwork.events import Event, Note
from beadwork.harvest.keeper import Keeper
from beadwork.ipi.advice import advice
from beadwork.ipi.output_steps import Written
from beadwork.ipi.process import LISTEN, OwnIpi
from beadwork.ipi.simulation import Simulation, read
from beadwork.observe.last import save
from beadwork.observe.metrics import Metrics
from beadwork.observe.pace import Pace
from beadwork.observe.progress import Progress
from beadwork.observe.record import Record, tell
from beadwork.observe.status import Status, claimed
from beadwork.potential.limits import Thresholds
from beadwork.report.picture import draw
from beadwork.serve.assemble import join
from beadwork.serve.hot_swap import Swap
from beadwork.serve.server import Server
from beadwork.serve.service import Service
from beadwork.signals import handled, interrupt


class Session:
    """Everything between a configuration and an exit code."""

    def __init__(self, config: ServeConfig, threads: str) -> None:
        self._config = config
        self._signal = 0  # the one that ended us
        self._answering = False  # whether a signal waits for the answer under way, or ends us where we are
        self._ipi: OwnIpi | None = None
        self._started = time.time()
        self._restart: int | None = None  # when the RESTART that we found was written
        self._notes = [threads]
        self._swap: Swap | None = None
        self._outputs: Written | None = None  # i-PI's

    def run(self, *, start_ipi: bool) -> int:
        """Serve, with an i-PI of our own if `start_ipi`, and return the exit code.

        Raises BeadworkError, and Interrupted for a signal that comes before there is anything to answer.
        """
        end, reload = self._on_signal, self._on_reload
        with handled({signal.SIGINT: end, signal.SIGTERM: end, signal.SIGHUP: reload}):
            return self._run(start_ipi)

    def _run(self, start_ipi: bool) -> int:
        folder = Path(self._config.out)
        simulation = read(Path(self._config.simulation), self._config.sockets_prefix)
        # a second run typed in the folder of a live one must not touch a file of it
        with ExitStack() as ours:
            ours.enter_context(claimed(folder))
            if start_ipi:
                self._ipi = OwnIpi(simulation, self._config.sockets_prefix)
                ours.enter_context(self._ipi.alone())
            return self._go(simulation, folder)

    def _go(self, simulation: Simulation, folder: Path) -> int:
        config = self._config
        self._restart = _written(simulation.directory / "RESTART")
        self._notes += map(str, advice(simulation, config.servers or 1))
        if config.servers > 1:
            self._notes.append(
                f"one of {config.servers} servers, which does not know which bead is which; its steps are i-PI's as "
                "long as all of them answer, and go faster where one is missing"
            )
        total = simulation.total_steps
        pace = Pace(simulation.systems[0].timestep, len(config.at) or 1, simulation.step)
        services: list[Service] = []
        watchers: list[Callable[[Event], None]] = []

        def watch(event: Event) -> None:
            with writing(Path("the log")):  # what a watcher says on a terminal, or into a file on a full disk
                for watcher in watchers:
                    watcher(event)

        def facts() -> dict[str, Any]:
            return _facts(services)

        status = Status(folder, pace, total, facts, watch)
        try:
            found, notes = join(config, simulation)
            services += found
            self._notes += notes
            progress = Progress(pace, total)
            record = Record(folder, _elements(services), self._about(simulation, services, folder))
        except BaseException as error:
            status.close(getattr(error, "exit_code", 1), str(error))
            raise
        watchers += [pace, progress, record, status]
        metrics = None
        harvest = None
        ended: BaseException | None = None
        try:
            if config.metrics is not None:
                metrics = Metrics(config.metrics, pace, total, facts)
                watchers.append(metrics)
                self._notes.append(f"metrics for Prometheus are at {metrics.address}")
            for note in self._notes:
                watch(Note(note))
            if config.queue:
                if not any(len(service.potential.members) > 1 for service in services):
                    raise ConfigError(
                        "a queue keeps what the committee is unsure of, but no forcefield is served two Δ models or "
                        "more",
                        "give more of them with --delta, or no --queue",
                    )
                harvest = Keeper(config, simulation.sha256, watch)
            self._swap = Swap(config, watch)
            self._outputs = Written(simulation.outputs, simulation.step)
            for service in services:
                if service.potential.members:
                    self._swap.serve(str(service.line.address), service.potential, service.numbers, service.ring)
            self._answering = True
            if self._ipi is not None:
                self._start_ipi(self._ipi, services, folder, watch)
            else:
                where = ", ".join(str(service.line.address) for service in services)
                watch(Note(f"i-PI is looked for at {where}, for {config.patience:g} s (--patience)"))
            server = Server(
                services,
                patience=max(config.patience, LISTEN) if self._ipi else config.patience,
                silence=config.silence,
                harvest=harvest,
                watch=watch,
                stopped=self._stopped,
                marks=Thresholds(
                    config.mark_distance,
                    config.mark_force,
                    config.mark_spread,
                    config.mark_novelty,
                    config.on_mark == "stop",
                ),
                directory=simulation.directory if self._ipi else None,
                swap=self._swap,
                written=self._outputs,
            )
            try:
                server.run()
            finally:
                if self._signal or sys.exc_info()[1] or (self._ipi is not None and self._ipi.poll()):
                    self._last_words(server, folder)
        except BaseException as error:
            ended = error
            raise
        finally:
            self._answering = True  # from here on all is put in order, whatever comes
            code = self._ipi.end(lambda: bool(self._signal)) if self._ipi else 0
            try:
                with ExitStack() as farewell:  # every part of it, from the last to the first, whatever the others do
                    if self._swap is not None:  # last, for a check that is under way takes its time
                        farewell.callback(self._swap.close)
                    farewell.callback(self._finish, simulation, services, record, folder, self._end(ended, code))
                    farewell.callback(progress.close)
                    if metrics is not None:
                        farewell.callback(metrics.close)
                    if harvest is not None:
                        record.dropped = harvest.writer.dropped
                        farewell.callback(harvest.close)
                    if code:
                        watch(Note(f"i-PI ended with exit code {code}; what it said is in {folder / 'i-pi.log'}"))
            except BeadworkError as error:
                if ended is None:
                    ended = error
                    raise
                if str(error) != str(ended):
                    _say(str(error))  # what ended the run before is what it ends with
            finally:
                code, why = self._end(ended, code)
                status.close(code, why)
        return code

    def _end(self, ended: BaseException | None, code: int) -> tuple[int, str]:
        """Our exit code and why we end so: by what was raised, by a signal, or as i-PI did, whose code this is."""
        if ended is not None:
            return getattr(ended, "exit_code", 1), str(ended)
        if self._signal:
            return 128 + self._signal, f"ended by {signal.Signals(self._signal).name}"
        return code, f"i-PI ended with exit code {code}; what it said is in i-pi.log" if code else ""

    def _about(self, simulation: Simulation, services: list[Service], folder: Path) -> dict[str, Any]:
        """What `beadwork report` has to know of this run, paths counted from the folder of our outputs."""
        system = simulation.systems[0]
        queue = self._config.queue

        def seen_from_there(path: Path | str) -> str:
            return os.path.relpath(Path(path).resolve(), folder.resolve())  # `folder` may be a link to elsewhere

        return {
            "simulation": seen_from_there(simulation.path),
            "simulation_sha256": simulation.sha256,
            "directory": seen_from_there(simulation.directory),
            "outputs": f"{system.prefix}_{simulation.prefix}" if system.prefix else simulation.prefix,
            "properties": {
                output.name: {"stride": output.stride, "columns": output.columns} for output in simulation.properties
            },
            "queue": None if not queue else "elsewhere" if "://" in queue else seen_from_there(queue),
            "first_step": simulation.step,
            "time_step_fs": system.timestep,
            "temperature_K": system.temperature,
            "beads": system.nbeads,
            "periodic": self._config.periodic,
            # whether what drove i-PI is the plain mean that its `committee_pot` has
            "plain_mean": all(
                not service.potential.weighs and len(set(service.potential.weights.tolist())) < 2
                for service in services
            ),
            "spread_of_delta_alone": any(service.potential.spread_of_delta_alone for service in services),
            "models": {seen_from_there(card.path): card.hash for card in services[0].potential.cards},
            "started": time.time(),
        }

    @staticmethod
    def _start_ipi(ipi: OwnIpi, services: list[Service], folder: Path, watch: Callable[[Event], None]) -> None:
        pid = ipi.start(folder, lambda text: watch(Note(text)))
        for service in services:
            service.line.pid = pid

    def _last_words(self, server: Server, folder: Path) -> None:
        """Leave the last frames on disk; what goes wrong with that is said, and is not what ended the run."""
        last = server.last()
        if not last:
            return
        count = sum(len(one.frames) for one in last)
        which = "could not be answered for" if server.refused else "were answered last"
        try:
            _say(f"the {count} frames that {which} are in {save(last, folder)}")
        except BeadworkError as error:
            _say(f"the {count} frames that {which} are lost: {error}")

    def _stopped(self) -> bool:
        return bool(self._signal) or (self._ipi is not None and self._ipi.poll() is not None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if not self._answering:
            interrupt(number, frame)

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        if self._swap is not None:
            self._swap.ask()

    def _finish(
        self,
        simulation: Simulation,
        services: list[Service],
        record: Record,
        folder: Path,
        end: tuple[int, str],
    ) -> None:
        steps = self._steps_done(simulation)
        come_to = None if self._ipi is not None or self._outputs is None else self._outputs.look().step
        pattern = services[0].pattern if len(services) == 1 and services[0].servers == 1 else None
        summary = record.summary(steps, pattern.step if pattern else None, come_to)
        summary["exit_code"], summary["why"] = end
        record.close(summary)
        if not record.answered:
            return  # what ended the run is all there is to say
        with writing(Path("the summary's words")), telling():
            print(tell(summary, folder, self._config.queue), flush=True)
        with writing(folder / "run.png"):
            try:
                said = draw(folder)
            except OSError:
                raise  # a full disk has a code
            except Exception as error:  # noqa: BLE001 - the run has ended, and its code is not the picture's
                said = f"no picture: {type(error).__name__}: {error}"
            with telling():
                print(said, flush=True)

    def _steps_done(self, simulation: Simulation) -> int | None:
        """Steps that i-PI itself says it has done, from the RESTART that it writes when it ends; None without one."""
        restart = simulation.directory / "RESTART"
        if self._ipi is None or _written(restart) in (None, self._restart):
            return None
        try:
            return read(restart).step - simulation.step
        except SimulationError as error:
            print(f"beadwork: i-PI's steps cannot be counted: {error}", file=sys.stderr)
            return None


def _elements(services: Sequence[Service]) -> list[str]:
    """Symbols of all that has a spread or a novelty, heaviest first."""
    served = [
        service.numbers for service in services if len(service.potential.members) > 1 or service.potential.knows_novelty
    ]
    return [chemical_symbols[z] for z in sorted({int(z) for numbers in served for z in numbers}, reverse=True)]


def _facts(services: Sequence[Service]) -> dict[str, Any]:
    """What answers at this moment: the engines, and the hash of all models as the queue has it."""
    potentials = [service.potential for service in services]
    if not potentials:  # they are being loaded
        return {"engines": [], "committee": None, "spread_of_delta_alone": False}
    engines = dict.fromkeys(engine.name for potential in potentials for engine in potential.engines)
    # the forcefields' potentials are parts of one, so each holds all its cards; only those with members are swapped
    answers = next((p for p in potentials if p.members), potentials[0])
    return {
        "engines": list(engines),
        "committee": answers.identity,
        "spread_of_delta_alone": answers.spread_of_delta_alone,
    }


def _say(text: str) -> None:
    """Say something in the end; into a log on the disk that is full it cannot be said."""
    with suppress(OSError):
        print(f"beadwork: {text}", file=sys.stderr)


def _written(path: Path) -> int | None:
    """When a file was last written; None where there is none. Only to be compared: the clock may be set."""
    return path.stat().st_mtime_ns if path.exists() else None
