"""Everything that drives MACE through i-PI, each in a folder of its own, started once and then run in turns.

A peer is one real i-PI and its clients. Between its turns all its processes are stopped by a signal, so that peers
can be interleaved in one run without starting each of them anew, and none takes time from another. A step's time is
the time between two lines of i-PI's property file, as seen from outside.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from system import Size, write_start

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
#: seconds between two looks at the property file
LOOK = 1e-3
#: seconds that start-up (imports, reading models, compiling kernels, the start structure) may take
START = 600.0


class PeerError(RuntimeError):
    """A peer ended, or did not answer in time. The message is its last words."""


@dataclass(frozen=True)
class Setting:
    """What may be chosen for a peer.

    threads: of each client, None for what a user gets who sets nothing. clients: how many at once, a forcefield.
    latency: i-PI's, None for its default.
    """

    threads: int | None = 1
    clients: int = 1
    latency: float | None = None

    def __str__(self) -> str:
        threads = "default threads" if self.threads is None else f"{self.threads} thread{'s' * (self.threads > 1)}"
        latency = "default latency" if self.latency is None else f"latency {self.latency:g}"
        return f"{self.clients} client{'s' * (self.clients > 1)} x {threads}, {latency}"


@dataclass(frozen=True)
class Parts:
    """What makes a peer: forcefields and forces of i-PI's input, and commands of clients by the socket they dial."""

    forcefields: str
    forces: str
    commands: list[list[str]]


Builder = Callable[["Place", Setting], Parts]


@dataclass(frozen=True)
class Place:
    """Where a peer runs. models: MACE models; bundles: the same as bundles; address: of its socket."""

    folder: Path
    size: Size
    models: list[Path]
    bundles: list[Path]
    address: str


def _latency(setting: Setting) -> str:
    return "" if setting.latency is None else f"<latency>{setting.latency:g}</latency>"


def _socket(name: str, place: Place, setting: Setting, batch: int) -> str:
    batched = f"<batch_size>{batch}</batch_size>" if batch > 1 else ""
    return (
        f"<ffsocket name='{name}' mode='unix'><address>{place.address}-{name}</address>"
        f"{batched}{_latency(setting)}</ffsocket>"
    )


def _python(*words: str | Path) -> list[str]:
    return [sys.executable, *map(str, words)]


def _py_driver(place: Place, name: str, model: Path) -> list[str]:
    (place.folder / "mace.json").write_text(f'{{"default_dtype": "{place.size.dtype}"}}')
    parameters = f"template=init.xyz,model={model},device={place.size.device},mace_kwargs=mace.json"
    return [*_python(BIN / "i-pi-py_driver"), "-u", "-a", f"{place.address}-{name}", "-m", "mace", "-o", parameters]


def py_driver(place: Place, setting: Setting) -> Parts:
    """P1: a structure a message; several clients share the beads."""
    command = _py_driver(place, "ff", place.models[0])
    return Parts(_socket("ff", place, setting, 1), "<force forcefield='ff'/>", [command] * setting.clients)


def py_driver_batched(place: Place, setting: Setting) -> Parts:
    """P2: all beads in a message, or as many as each of several clients gets."""
    batch = -(-place.size.beads // setting.clients)
    command = _py_driver(place, "ff", place.models[0])
    return Parts(_socket("ff", place, setting, batch), "<force forcefield='ff'/>", [command] * setting.clients)


def _ffdirect(name: str, place: Place, setting: Setting, model: Path) -> str:
    return (
        f"<ffdirect name='{name}'><pes>mace</pes><parameters>{{template:init.xyz,model:{model}}}</parameters>"
        f"<batch_size>{place.size.beads}</batch_size>{_latency(setting)}</ffdirect>"
    )


def ffdirect(place: Place, setting: Setting) -> Parts:
    """P3: no socket, all beads in a call."""
    return Parts(_ffdirect("ff", place, setting, place.models[0]), "<force forcefield='ff'/>", [])


def ase_client(place: Place, setting: Setting) -> Parts:
    """P4."""
    command = _python(HERE / "ase_client.py", place.models[0], "init.xyz", f"{place.address}-ff")
    return Parts(_socket("ff", place, setting, 1), "<force forcefield='ff'/>", [command] * setting.clients)


def _committee(forcefields: Sequence[str]) -> tuple[str, str]:
    inner = "".join(forcefields[1:])
    return (
        f"{forcefields[0]}<ffcommittee name='committee'>{inner}</ffcommittee>",
        "<force forcefield='m0'/><force forcefield='committee'/>",
    )


def ffcommittee_sockets(place: Place, setting: Setting) -> Parts:
    """P5: a socket and `clients` clients for each of the models."""
    names = [f"m{m}" for m in range(len(place.models))]
    xml, forces = _committee([_socket(name, place, setting, 1) for name in names])
    commands = [_py_driver(place, n, m) for n, m in zip(names, place.models, strict=True)]
    return Parts(xml, forces, commands * setting.clients)


def ffcommittee_direct(place: Place, setting: Setting) -> Parts:
    """P5 without sockets: all beads in a call, a model after the other."""
    members = [_ffdirect(f"m{m}", place, setting, model) for m, model in enumerate(place.models)]
    return Parts(*_committee(members), [])


def _ours(place: Place, setting: Setting, engine: str, delta: Sequence[Path] = ()) -> Parts:
    words = ["serve", "input.xml", "--engine", engine, "--threads", str(setting.threads or 0)]
    words += ["--device", place.size.device, "--dtype", place.size.dtype, "--baseline", str(place.bundles[0])]
    if delta:
        words += ["--delta", *map(str, delta)]
    if setting.clients > 1:
        words += ["--servers", str(setting.clients)]
    xml = _socket("ff", place, setting, -(-place.size.beads // setting.clients))
    commands = [_python("-m", "beadwork.cli", *words, "--out", f"ours-{k}") for k in range(setting.clients)]
    return Parts(xml, "<force forcefield='ff'/>", commands)


def ours_native(place: Place, setting: Setting) -> Parts:
    """beadwork's native engine."""
    return _ours(place, setting, "native")


def ours_torchscript(place: Place, setting: Setting) -> Parts:
    """beadwork's TorchScript engine."""
    return _ours(place, setting, "torchscript")


def ours_committee(place: Place, setting: Setting) -> Parts:
    """beadwork with the baseline and the committee as separate models."""
    return _ours(place, setting, "native", place.bundles[1:-1])


def ours_trunk(place: Place, setting: Setting) -> Parts:
    """The same with the committee on one trunk: the last bundle holds all its heads."""
    return _ours(place, setting, "native", place.bundles[-1:])


def gas(place: Place, setting: Setting) -> Parts:
    """i-PI's own zero-cost driver, batched."""
    command = [*_python(BIN / "i-pi-py_driver"), "-u", "-a", f"{place.address}-ff", "-m", "gas"]
    return Parts(_socket("ff", place, setting, place.size.beads), "<force forcefield='ff'/>", [command])


def ours_zero(place: Place, setting: Setting) -> Parts:
    """beadwork's wire, gather, reply and extras of a committee of zeros."""
    command = _python(HERE / "zero_server.py", "input.xml", str(place.size.members))
    return Parts(_socket("ff", place, setting, place.size.beads), "<force forcefield='ff'/>", [command])


def input_xml(parts: Parts, size: Size) -> str:
    """i-PI's input of a peer, which runs until it is ended."""
    positions = "".join(
        f"<positions mode='xyz' bead='{k}' units='angstrom'>bead-{k}.xyz</positions>" for k in range(size.beads)
    )
    return f"""<simulation verbosity='low' safe_stride='1000000'>
  <output prefix='out'>
    <trajectory stride='1000000' filename='force' format='xyz'> forces </trajectory>
    <properties stride='1' filename='properties'> [ step, potential, conserved, kinetic_md ] </properties>
  </output>
  <total_steps>1000000</total_steps>
  <prng><seed>31415</seed></prng>
  {parts.forcefields}
  <system>
    <initialize nbeads='{size.beads}'>
      <file mode='xyz'>bead-0.xyz</file>{positions}
      <velocities mode='thermal' units='kelvin'>300</velocities>
    </initialize>
    <forces>{parts.forces}</forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'>0.25</timestep>
        <thermostat mode='pile_g'><tau units='femtosecond'>100</tau></thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def _environment(setting: Setting) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    if setting.threads is not None:
        environment |= {name: str(setting.threads) for name in names[:3]}
    return environment


@dataclass
class Peer:
    """One i-PI with its clients; `start` it, then `turn` after `turn`, and `end` it."""

    name: str
    place: Place
    setting: Setting
    build: Builder
    patience: float
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start i-PI and the clients, wait for step 0, and stop all. Raises PeerError."""
        folder = self.place.folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        parts = self.build(self.place, self.setting)
        self._write(parts)
        quiet = Setting(threads=self.setting.threads if not parts.commands else 1)
        self._launch("i-pi", [*_python(BIN / "i-pi"), "input.xml"], _environment(quiet))
        begin = time.perf_counter()
        sockets = [Path(f"/tmp/ipi_{name}") for name in re.findall("<address>(.*?)</address>", parts.forcefields)]
        while not all(path.exists() for path in sockets):
            self._alive(begin, 60.0)
            time.sleep(0.02)
        for k, command in enumerate(parts.commands):
            self._launch(f"client-{k}", command, _environment(self.setting))
        self._wait(1, START)
        while not all(file.read_bytes().count(b"\n") == self._force_lines for file in self._force_files()):
            self._alive(begin, START)  # i-PI's threads write the outputs of a step in any order
            time.sleep(LOOK)
        self._signal(signal.SIGSTOP)

    def _write(self, parts: Parts) -> None:
        """Write the input and what it starts from."""
        write_start(self.place.folder, self.place.size)
        (self.place.folder / "input.xml").write_text(input_xml(parts, self.place.size))

    def cores(self) -> float:
        """Seconds of a core that its processes have taken so far."""
        ticks = 0
        for process in self._processes:
            # after the name, which may have spaces, the 12th and 13th word are ticks of the user's and the system's
            words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def turn(self, steps: int, warm_up: int = 1) -> list[float]:
        """Go on for `warm_up` steps and `steps` more, and return the seconds of each of these. Raises PeerError.

        The first step is under way when the processes are stopped, so it is never timed.
        """
        lines = self._lines() + 1
        self._signal(signal.SIGCONT)
        seen = [self._wait(lines + k, self.patience) for k in range(warm_up + steps)]
        self._signal(signal.SIGSTOP)
        return np.diff(seen)[warm_up - 1 :].tolist()  # type: ignore[no-any-return]

    def properties(self) -> np.ndarray:
        """(steps so far, 4): step, potential, conserved quantity and kinetic energy, atomic units."""
        return np.loadtxt(self.place.folder / "out.properties", ndmin=2)

    def forces(self) -> np.ndarray:
        """(beads, atoms, 3) at step 0, in i-PI's units and its six digits."""
        return np.array([np.loadtxt(file, skiprows=2, usecols=(1, 2, 3)) for file in self._force_files()])

    def _force_files(self) -> list[Path]:
        return sorted(self.place.folder.glob("out.force_*.xyz"))

    @property
    def _force_lines(self) -> int:
        return 2 + 3 * self.place.size.waters

    def end(self) -> None:
        """Kill everything; nothing that it holds is worth keeping."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._processes.clear()
        for path in Path("/tmp").glob(f"ipi_{self.place.address}-*"):
            path.unlink()

    def _launch(self, log: str, command: list[str], environment: dict[str, str]) -> None:
        with open(self.place.folder / f"{log}.log", "wb") as out:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=self.place.folder,
                    env=environment,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, number)

    def _lines(self) -> int:
        file = self.place.folder / "out.properties"
        return sum(not line.startswith(b"#") for line in file.read_bytes().splitlines()) if file.exists() else 0

    def _wait(self, lines: int, patience: float) -> float:
        """Wait until the property file has so many lines, and return when that was seen."""
        begin = time.perf_counter()
        file = self.place.folder / "out.properties"
        size = -1
        while True:
            now = time.perf_counter()
            grown = file.stat().st_size if file.exists() else 0
            if grown != size:
                size = grown
                if self._lines() >= lines:
                    return now
            self._alive(begin, patience)
            time.sleep(LOOK)

    def _alive(self, begin: float, patience: float) -> None:
        dead = next((p for p in self._processes if p.poll() is not None), None)
        if dead is not None:
            raise PeerError(f"a process ended with code {dead.returncode}: {self._last_words()}")
        if time.perf_counter() - begin > patience:
            raise PeerError(f"no step in {patience:g} s: {self._last_words()}")

    def _last_words(self) -> str:
        words = []
        for log in sorted(self.place.folder.glob("*.log")):
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            words += [f"{log.stem}: {lines[-1].strip()[:200]}"] if lines else []
        return re.sub(r"(/[^\s/:'\"]+)+/", "", " | ".join(words))


@contextmanager
def running(peers: Sequence[Peer]) -> Iterator[None]:
    """End all of them, whatever happens."""
    try:
        yield
    finally:
        for peer in peers:
            peer.end()
