"""The i-PI that `beadwork run` starts: alone in its folder, at addresses that are free, and ended with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from beadwork.disk import alone, rotate_file, writing
from beadwork.errors import ConfigError, SimulationError
from beadwork.ipi.named_files import plumed_files
from beadwork.ipi.simulation import Simulation
from beadwork.ipi.transport import address_in_use, address_of, is_stale
from beadwork.processes import as_shell, end, launch
from beadwork.signals import handled

#: the sign of an i-PI of ours in the folder where it works
LOCK = ".i-pi.lock"
#: seconds that it gets to end by itself after its servers have ended
FAREWELL = 20.0
#: seconds that it gets to listen, at least
LISTEN = 60.0


def _check_plumed(path: Path) -> None:
    """Raise SimulationError where i-PI could not load PLUMED for this input.

    In another process, as i-PI would: its package is of no use to us, and its library has no place in a server.
    """
    tried = subprocess.run([sys.executable, "-c", "import plumed; plumed.Plumed()"], capture_output=True, text=True)
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        raise SimulationError(
            f"{path} has an <ffplumed>, and PLUMED does not load here: {said}",
            "install its package (pip install plumed) and its library (of your system, of conda-forge, or from its "
            "source), and name the library's libplumedKernel.so in PLUMED_KERNEL",
        )


class OwnIpi:
    """One run of the i-PI of this environment. sockets_prefix: what it gets as -S; None takes the XML's."""

    def __init__(self, simulation: Simulation, sockets_prefix: str | None) -> None:
        self._simulation = simulation
        self._prefix = sockets_prefix
        self._exit = simulation.directory / "EXIT"  # the file that stops it
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have its folder alone, before anything there is touched.

        Raises ConfigError where another one of ours is at work, and SimulationError where i-PI could not begin.
        """
        home = self._simulation.directory
        busy = f"beadwork has started an i-PI in {home} already, with which this one would share EXIT and RESTART"
        with alone(home / LOCK, busy, "end it, or start this one from another folder"):
            self._simulation.check_outputs()
            if self._simulation.plumed:
                plumed_files(self._simulation)
                _check_plumed(self._simulation.path)
            self._left_behind()
            yield

    def _left_behind(self) -> list[Path]:
        """Socket files in its way on which nobody listens. Raises SimulationError where an address is another's."""
        found = []
        for socket in self._simulation.sockets:  # i-PI takes them all, whoever serves them
            address = address_of(self._simulation, socket)
            if address.path is not None and is_stale(address.path):
                found.append(address.path)
            elif address_in_use(address):
                raise SimulationError(
                    f"{address} is held by another i-PI that is running",
                    "end it, or give the forcefield another address",
                )
        return found

    def start(self, folder: Path, tell: Callable[[str], None]) -> int:
        """Start it, with its words in a file of this folder, and return its process's number.

        Raises ConfigError where there is no i-PI in this environment, else what `alone` and `writing` raise.
        """
        for address in self._left_behind():
            address.unlink()
            tell(f"removed {address}, which an i-PI that was killed had left")
        home = self._simulation.directory  # where it finds its files, and leaves its outputs
        self._exit.unlink(missing_ok=True)  # it would stop before its first step
        program = Path(sys.executable).with_name("i-pi")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if not program.exists():
            raise ConfigError(
                f"there is no {program}: install i-PI beside beadwork (pip install ipi), or start it "
                "yourself and use beadwork serve"
            )
        options = [] if self._prefix is None else ["-S", self._prefix]
        rotate_file(folder / "i-pi.log")
        # a terminal that goes away ends neither us nor it
        command = [str(program), *options, str(self._simulation.path.resolve())]
        with handled({signal.SIGHUP: signal.SIG_IGN}), writing(folder / "i-pi.log"):
            self._process = launch(command, folder / "i-pi.log", home, environment)
        if home.resolve() != Path.cwd():
            tell(f"i-PI runs in {home}, where the files are that its input names, and writes there")
        return self._process.pid

    def stopped(self) -> int | None:
        """Its exit code where it has ended; None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    def end(self, now: Callable[[], bool]) -> int:
        """Wait for it to end, and return its exit code, as a shell has it; 0 where it was not started.

        now: asked whether it is not to be waited for. Then, and where it does not end by itself, it is asked to (it
        writes its RESTART then), and killed if that does not help.
        """
        if self._process is None:
            return 0
        until = time.monotonic() + FAREWELL
        while self._process.poll() is None and not now() and time.monotonic() < until:
            time.sleep(0.02)
        code = end(self._process, FAREWELL)
        with suppress(OSError):  # it has done its work, and would end the next i-PI
            self._exit.unlink(missing_ok=True)
        return as_shell(code)
