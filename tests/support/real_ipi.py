"""Real i-PI, small: four waters, random-weight models, sockets of a test's own, and no process left behind."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace

import ase
import ase.io
import numpy as np
import pytest

from support.random_models import once, random_mace, write_bundle

BIN = Path(sys.executable).parent
#: seconds after which something has stalled; a run here takes a few
PATIENCE = 120.0
#: what every test process gets: one thread, and kernels where the session keeps them
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_PROC_BIND": "false"}


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread a process, and compiled kernels in a folder of the session, unless the caller has one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        if "SYMMETRIX_JIT_CACHE" not in os.environ:
            patch.setenv("SYMMETRIX_JIT_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield


def waters(count: int = 4, seed: int = 1) -> ase.Atoms:
    """Liquid-like water: molecules of the gas phase's shape on a grid, turned at random; OHH, periodic."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(count ** (1 / 3)))
    molecule = np.array([[0.0, 0.0, 0.0], [0.957, 0.0, 0.0], [-0.24, 0.927, 0.0]])
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:count]
    positions = []
    for place in grid:
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        positions.append(2.8 * place + molecule @ turn.T)
    return ase.Atoms("OHH" * count, positions=np.concatenate(positions), cell=[2.8 * side] * 3, pbc=True)


def make_model(
    folder: Path,
    name: str,
    seed: int,
    scale: float,
    repulsion: bool,
    energies: tuple[float, float],
    elements: tuple[int, ...] = (1, 8),
) -> Path:
    """A bundle of a MACE with random weights (float64, L = 0), and the eager model beside it."""
    model = random_mace(
        seed=seed,
        cutoff=3.5,
        scale=scale,
        shift=0.0,
        neighbors=10.0,
        energies=energies,
        elements=elements,
        zbl=repulsion,
    )
    return write_bundle(model, folder, name)


@dataclass(frozen=True)
class Models:
    """Bundles, and the eager model files that they were made of."""

    baseline: Path
    delta: tuple[Path, ...]
    folder: Path

    def file(self, bundle: Path) -> Path:
        """Return the eager model that a bundle was made of, which MACE's own calculator reads."""
        return self.folder / f"{bundle.name}.model"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A baseline with repulsion, which keeps atoms apart, and three Δ models of small forces."""

    def make(folder: Path) -> None:
        make_model(folder, "baseline", 0, 2.0, True, (-13.6, -442.0))
        for k in range(3):
            make_model(folder, f"delta-{k}", k + 1, 0.5, False, (0.0, 0.0))

    folder = once(tmp_path_factory, "models", make)
    return Models(folder / "baseline", tuple(folder / f"delta-{k}" for k in range(3)), folder)


@dataclass(frozen=True)
class Forcefield:
    """One `<ffsocket>`. tags: more of its XML."""

    name: str = "water"
    mode: str = "unix"
    batch: int = 1
    consolidate: bool = True
    slots: int = 4
    latency: float = 1e-4
    tags: str = ""


@dataclass(frozen=True)
class Input:
    """An i-PI input in a folder of its own, with addresses of its own.

    forces: the XML between <forces>, by default every forcefield with weight 1. bias: that of each ensemble. ensembles:
    one for each `<system>`, all of the same atoms on the same forcefields, integrated one after the other. extras: what
    `<trajectory>`s write. motion: the XML of <dynamics>. around: what is put around the sockets.
    """

    folder: Path
    forcefields: Sequence[Forcefield] = (Forcefield(),)
    ensembles: Sequence[str] = ("nvt",)
    beads: int = 4
    steps: int = 20
    atoms: ase.Atoms = field(default_factory=waters)
    forces: str = ""
    bias: str = ""
    extras: Sequence[str] = ()
    motion: str = ""
    around: str = "{}"

    @property
    def prefix(self) -> str:
        """Where the unix sockets lie; i-PI appends each forcefield's address."""
        return f"{self.folder}/s-"

    @property
    def path(self) -> Path:
        """The XML."""
        return self.folder / "input.xml"

    def write(self) -> Input:
        """Write XML and start structure, and return self."""
        self.folder.mkdir(parents=True, exist_ok=True)
        atoms = self.atoms
        lengths = " ".join(f"{x:.8f}" for x in atoms.cell.cellpar())
        lines = [str(len(atoms)), f"# CELL(abcABC): {lengths} cell{{angstrom}} positions{{angstrom}}"]
        lines += [
            f"{s} {x:.10f} {y:.10f} {z:.10f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)
        ]
        (self.folder / "init.xyz").write_text("\n".join(lines) + "\n")
        self.path.write_text(self.xml())
        return self

    def xml(self) -> str:
        """The whole input; every number with 16 digits."""
        sockets = "".join(self._socket(forcefield) for forcefield in self.forcefields)
        asked = ["step", "time{femtosecond}", "conserved", "temperature{kelvin}", "potential", "volume"]
        asked += ["ensemble_bias"] if self.bias else []
        asked += ["pressure_cv", "stress_md"]
        extras = "".join(
            f"<trajectory stride='1' filename='{key}' extra_type='{key}'> extras </trajectory>" for key in self.extras
        )
        return (
            f"<simulation verbosity='medium' floatformat='%24.15e' sockets_prefix='{self.prefix}' safe_stride='10' "
            f"threading='{len(self.ensembles) == 1}'>"  # threads would draw random numbers in any order
            f"<output prefix='run'><properties stride='1' filename='out'> [ {', '.join(asked)} ] </properties>"
            f"{extras}<checkpoint stride='10' filename='checkpoint' overwrite='true'/></output>"
            f"<total_steps>{self.steps}</total_steps><prng><seed>4242</seed></prng>"
            + self.around.format(sockets)
            + "".join(self._system(k, ensemble) for k, ensemble in enumerate(self.ensembles))
            + "</simulation>"
        )

    def _socket(self, forcefield: Forcefield) -> str:
        if forcefield.mode == "inet":
            address = f"<address>127.0.0.1</address><port>{free_port(self.folder, forcefield.name)}</port>"
        else:
            address = f"<address>{forcefield.name}</address>"
        batch = f"<batch_size>{forcefield.batch}</batch_size>" if forcefield.batch > 1 else ""
        return (
            f"<ffsocket name='{forcefield.name}' mode='{forcefield.mode}' pbc='False'>{address}{batch}"
            f"<slots>{forcefield.slots}</slots><latency>{forcefield.latency}</latency>"
            f"<consolidate_messages>{forcefield.consolidate}</consolidate_messages>{forcefield.tags}</ffsocket>"
        )

    def _system(self, number: int, ensemble: str) -> str:
        forces = self.forces or "".join(f"<force forcefield='{f.name}'/>" for f in self.forcefields)
        thermostat = "<thermostat mode='pile_l'><tau units='femtosecond'>50</tau></thermostat>"
        barostat = (
            "<barostat mode='isotropic'><tau units='femtosecond'>100</tau>"
            "<thermostat mode='langevin'><tau units='femtosecond'>100</tau></thermostat></barostat>"
        )
        dynamics = (
            self.motion
            or f"<dynamics mode='{ensemble}'><timestep units='femtosecond'>0.5</timestep>"
            + (barostat if ensemble == "npt" else "")
            + (thermostat if ensemble != "nve" else "")
            + "</dynamics>"
        )
        pressure = "<pressure units='bar'>1</pressure>" if ensemble == "npt" else ""
        bias = f"<bias>{self.bias}</bias>" if self.bias else ""
        prefix = f" prefix='{number}'" if number else ""
        return (
            f"<system{prefix}><initialize nbeads='{self.beads}'><file mode='xyz'>init.xyz</file>"
            "<velocities mode='thermal' units='kelvin'>300</velocities></initialize>"
            f"<forces>{forces}</forces>"
            f"<ensemble><temperature units='kelvin'>300</temperature>{pressure}{bias}</ensemble>"
            f"<motion mode='dynamics'>{dynamics}</motion></system>"
        )

    def properties(self, system: int = 0) -> dict[str, np.ndarray]:
        """Return what i-PI wrote: a column, or several, by name; (steps + 1,) or (steps + 1, n); atomic units."""
        return read_properties(self.folder / (f"{system}_run.out" if system else "run.out"))

    def positions(self) -> np.ndarray:
        """Return where all beads of all systems were at the end, (systems * beads, 3 N) Bohr."""
        text = (self.folder / "RESTART").read_text()
        found = re.findall(r"<q shape='\((\d+), (\d+)\)'>\s*\[(.*?)\]", text, re.DOTALL)
        return np.concatenate([np.array(q.split(","), float).reshape(int(n), int(m)) for n, m, q in found])


_PORTS: dict[tuple[Path, str], int] = {}


def free_port(folder: Path, name: str) -> int:
    """Return a port nobody listens on, the same whenever it is asked for this folder and name."""
    if (folder, name) not in _PORTS:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            _PORTS[folder, name] = probe.getsockname()[1]
    return _PORTS[folder, name]


def read_properties(path: Path) -> dict[str, np.ndarray]:
    """Read an i-PI property file by the names in its header."""
    columns: dict[str, slice] = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        words = line.split()
        first, _, last = words[2].partition("-")
        columns[words[4]] = slice(int(first) - 1, int(last or first))
    table = np.loadtxt(path, ndmin=2)
    parts = {name: table[:, where] for name, where in columns.items()}
    return {name: part[:, 0] if part.shape[1] == 1 else part for name, part in parts.items()}


class Processes:
    """Starts programs, each with a log; those that still run at the end of the test are killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[tuple[str, subprocess.Popen[bytes], Path]] = []

    def __call__(self, name: str, *command: object, cwd: Path) -> subprocess.Popen[bytes]:
        """Start a program of this environment, or a path."""
        log = self._folder / f"log-{len(self._started)}-{name}"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._started.append((name, process, log))
        return process

    def ipi(self, run: Input, *options: object) -> subprocess.Popen[bytes]:
        """Start i-PI where its input lies."""
        return self("i-pi", BIN / "i-pi", *options, run.path.name, cwd=run.folder)

    def beadwork(self, command: str, run: Input, *options: object) -> subprocess.Popen[bytes]:
        """Start `beadwork serve` or `beadwork run` where the input lies."""
        return self("beadwork", sys.executable, "-m", "beadwork.cli", command, run.path.name, *options, cwd=run.folder)

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What a program has written so far."""
        return next(log for _, started, log in self._started if started is process).read_text(errors="replace")

    def end(self) -> None:
        """Kill what still runs, and print every log; pytest shows them where the test has failed."""
        for name, process, log in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            print(f"--- {name}, exit code {process.returncode}\n{log.read_text(errors='replace')[-6000:]}")


@pytest.fixture(scope="session")
def mace_driver(models: Models) -> Callable[[Input], None]:
    """i-PI's own client with its own MACE interface, in this process, which saves the import of MACE."""

    def call(run: Input) -> None:
        import torch

        from beadwork.potential.architecture import mace_imported

        loader = SourceFileLoader("i_pi_py_driver", str(BIN / "i-pi-py_driver"))
        module = module_from_spec(spec_from_loader(loader.name, loader))
        with mace_imported(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # mace sets it when it is imported; this comes later
            loader.exec_module(module)
            from ipi.pes._mace import MACE_driver

            before = torch.get_default_dtype()
            driver = MACE_driver(
                template=str(run.folder / "init.xyz"), model=str(models.file(models.baseline)), device="cpu"
            )
            wait_for(Path(run.prefix + run.forcefields[0].name))
            module.run_driver(
                unix=True, address=run.forcefields[0].name, sockets_prefix=run.prefix, driver=driver, f_verbose=False
            )
            torch.set_default_dtype(before)

    return call


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Processes]:
    """Starts programs that end with the test."""
    processes = Processes(tmp_path)
    try:
        yield processes
    finally:
        processes.end()


@pytest.fixture(scope="session")
def ipi() -> SimpleNamespace:
    """The words for inputs: conftest cannot be imported by name."""
    return SimpleNamespace(
        Input=Input,
        Forcefield=Forcefield,
        Processes=Processes,
        waters=waters,
        wait_for=wait_for,
        free_port=free_port,
        make_model=make_model,
        PATIENCE=PATIENCE,
        BIN=BIN,
    )


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`beadwork serve` in this process, which saves the import of PyTorch; returns the exit code."""

    def call(run: Input, *options: object) -> int:
        from beadwork.cli import main

        monkeypatch.chdir(run.folder)
        return main(["serve", run.path.name, *(str(option) for option in options)])

    return call
