"""One run from configuration to exit: load, serve, harvest, record. What `beadwork serve` and `beadwork run` share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ase.io

from beadwork.config import ServeConfig
from beadwork.errors import ConfigError, SimulationError
from beadwork.events import Event, Note
from beadwork.frame import Frame
from beadwork.harvest.keeper import Keeper
from beadwork.ipi.simulation import Simulation, Socket, advice, read
from beadwork.ipi.transport import Address, Line, stale
from beadwork.observe.picture import draw
from beadwork.observe.progress import Progress
from beadwork.observe.record import Record, tell
from beadwork.potential.delta import Potential, load
from beadwork.server import Server, Service, extra_keys

#: seconds that i-PI gets to end by itself after the server has ended
FAREWELL = 20.0
#: where the structures go that ended a run
LAST_FRAMES = "last-frames.extxyz"


class Session:
    """Everything between a configuration and an exit code."""

    def __init__(self, config: ServeConfig, threads: str) -> None:
        self._config = config
        self._signal = 0  # the one that ended us
        self._ipi: subprocess.Popen[bytes] | None = None
        self._started = time.time()
        self._notes = [threads]

    def run(self, *, start_ipi: bool) -> int:
        """Serve, with an i-PI of our own if `start_ipi`, and return the exit code. Raises BeadworkError."""
        config = self._config
        simulation = read(Path(config.simulation))
        self._notes += advice(simulation)
        services = self._services(simulation)
        folder = Path(config.out)
        steps = simulation.total_steps - simulation.step
        progress = Progress(steps, simulation.systems[0].timestep, len(services))
        record = Record(folder)

        def watch(event: Event) -> None:
            progress(event)
            record(event)

        harvest = None
        code = 0
        try:
            for note in self._notes:
                watch(Note(note))
            if config.queue:
                if not any(len(service.potential.members) > 1 for service in services):
                    raise ConfigError(
                        "a queue keeps what the committee is unsure of, but no forcefield is served two Δ models or "
                        "more; give more of them with --delta, or no --queue"
                    )
                models = [card.hash for card in services[0].potential.cards]
                harvest = Keeper(config, simulation.sha256, models, watch)
            if start_ipi:
                self._start_ipi(simulation, services, folder, watch)
            server = Server(
                services,
                patience=config.patience,
                harvest=harvest,
                watch=watch,
                stopped=self._stopped,
                last_words=lambda frames: self._last_words(frames, folder),
                directory=simulation.directory if start_ipi else None,
            )
            with _signals(self._on_signal):
                server.run()
        finally:
            if self._ipi is not None:
                code = self._end_ipi()
                if code:
                    watch(Note(f"i-PI ended with exit code {code}; what it said is in {folder / 'i-pi.log'}"))
            try:
                if harvest is not None:
                    record.dropped = harvest.writer.dropped
                    harvest.close()
            finally:
                progress.close()
                self._finish(simulation, services, record, folder)
        return code or (128 + self._signal if self._signal else 0)

    def _services(self, simulation: Simulation) -> list[Service]:
        """Join the forcefields of the XML with the models. Raises SimulationError, ModelError or ConfigError."""
        config = self._config
        roles = dict(config.at) or {simulation.socket().name: "sum" if config.baseline else "delta"}
        whole = load(
            config.baseline,
            config.delta,
            config.engine,
            config.dtype,
            config.device,
            config.weights,
            config.alpha,
            config.baseline_uncertainty,
        )
        self._notes += whole.notes
        parts = {"sum": whole}
        if "baseline" in roles.values():
            parts["baseline"] = Potential(whole.baseline)
        if "delta" in roles.values():
            parts["delta"] = Potential(None, whole.members, list(whole.weights), whole.alpha)
        for part in parts.values():
            part.cards = whole.cards
        services = []
        for name, role in roles.items():
            socket = simulation.socket(name)
            potential = parts[role]
            numbers = simulation.numbers(socket)
            potential.check_species(numbers)
            self._notes += potential.settle(_start(simulation, socket))
            services.append(self._service(simulation, socket, potential, numbers))
        _check_extras(simulation, services)
        return services

    def _service(self, simulation: Simulation, socket: Socket, potential: Potential, numbers: Any) -> Service:
        config = self._config
        structures = simulation.structures(socket)
        # more connections than the ring has batches would never be used
        wanted = config.connections or -(-structures // socket.batch_size)
        line = Line(_address(socket, config.host), wanted, socket.mode == "shm", len(numbers))
        name = socket.parent or socket.name
        parts = [part for system in simulation.systems for part in system.forces if part.forcefield == name]
        steady = len(parts) == len(simulation.systems) and not socket.rotated
        return Service(
            line,
            potential,
            numbers,
            structures if steady else None,
            len(simulation.systems) == 1,
            config.periodic,
            config.member_forces,
        )

    def _start_ipi(
        self, simulation: Simulation, services: list[Service], folder: Path, watch: Callable[[Event], None]
    ) -> None:
        for service in services:
            path = service.line.address.path
            if path is None:
                continue
            if stale(path):
                path.unlink()
                watch(Note(f"removed {path}, which an i-PI that was killed had left"))
            elif path.exists():
                raise SimulationError(
                    f"{path} is held by another i-PI that is running; end it, or give the forcefield another address"
                )
        home = simulation.directory  # where i-PI finds its files, and leaves its outputs
        leftover = home / "EXIT"
        if leftover.exists():
            leftover.unlink()  # i-PI would stop before its first step
        program = Path(sys.executable).with_name("i-pi")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with open(folder / "i-pi.log", "wb") as log:
            self._ipi = subprocess.Popen(
                [str(program), str(simulation.path.resolve())],
                cwd=home,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        if home.resolve() != Path.cwd():
            watch(Note(f"i-PI runs in {home}, where the files are that its input names"))

    def _last_words(self, frames: Sequence[Frame], folder: Path) -> None:
        """Leave the frames that no model could answer for on disk."""
        path = folder / LAST_FRAMES
        structures = [frame.to_atoms() for frame in frames]
        for atoms, frame in zip(structures, frames, strict=True):
            atoms.info["bead"] = "unknown" if frame.bead is None else frame.bead
        ase.io.write(path, structures, format="extxyz")
        print(f"beadwork: the {len(frames)} frames that could not be answered for are in {path}", file=sys.stderr)

    def _stopped(self) -> bool:
        return bool(self._signal) or (self._ipi is not None and self._ipi.poll() is not None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _end_ipi(self) -> int:
        """Wait for i-PI to end, help it if it does not, and return its exit code, as a shell has it."""
        assert self._ipi is not None  # noqa: S101 - our own state
        if self._ipi.poll() is None and self._signal:
            self._ipi.send_signal(signal.SIGTERM)
        try:
            code = self._ipi.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self._ipi.kill()
            code = self._ipi.wait()
        return code if code >= 0 else 128 - code

    def _finish(self, simulation: Simulation, services: list[Service], record: Record, folder: Path) -> None:
        steps = self._steps_done(simulation)
        ring = services[0].ring if len(services) == 1 else None
        summary = record.summary(steps * ring if steps and ring else None)
        record.close(summary)
        print(tell(summary, folder, self._config.queue))
        for name in simulation.properties[:1]:
            print(draw(simulation.directory / name, folder / "beadwork.out", folder / "run.png"))

    def _steps_done(self, simulation: Simulation) -> int | None:
        """Steps that i-PI itself says it has done, from the RESTART that it writes when it ends; None without one."""
        restart = simulation.directory / "RESTART"
        if self._ipi is None or not restart.exists() or restart.stat().st_mtime < self._started:
            return None
        try:
            return read(restart).step - simulation.step
        except SimulationError as error:
            print(f"beadwork: i-PI's steps cannot be counted: {error}", file=sys.stderr)
            return None


def _check_extras(simulation: Simulation, services: list[Service]) -> None:
    """Refuse outputs of extras that no reply will have: i-PI would die with a KeyError at the first of them."""
    if any(socket.parent for socket in simulation.sockets):
        return  # an ffcommittee adds extras of its own
    sent = {key for service in services for key in extra_keys(service.potential, service.member_forces)}
    if missing := sorted(set(simulation.extras) - sent):
        raise SimulationError(
            f"{simulation.path} writes the extras {', '.join(missing)}, which will not be sent: "
            f"{', '.join(sorted(sent)) or 'nothing'} will; take those outputs out, or give a committee (--delta)"
        )


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the run after the reply that is being computed."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _address(socket: Socket, host: str | None) -> Address:
    if socket.path is not None:
        return Address(path=socket.path)
    # i-PI binds the address: one that means 'every interface' is dialled here
    return Address(
        host=host or (socket.address if socket.address not in ("", "0.0.0.0") else "localhost"), port=socket.port
    )


def _start(simulation: Simulation, socket: Socket) -> Frame:
    system, _ = simulation.served(socket)[0]
    return system.frame(0, socket.active)
