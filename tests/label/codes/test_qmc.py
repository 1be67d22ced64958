"""Labels by quantum Monte Carlo: jQMC itself where it is installed, and all that can go wrong where it is not."""

from __future__ import annotations

import ast
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import Frame
from beadwork.label.codes import qmc, qmc_env
from beadwork.label.codes.qmc import JQMC
from beadwork.label.constants import BOHR, HARTREE
from beadwork.processes import module

#: what a driver that went well writes, of two atoms
GOOD: dict[str, Any] = {
    "energy": -1.0,
    "energy_error": 0.001,
    "energy_error_half_the_blocks": 0.0011,
    "energy_by_window": {},
    "variance": 0.2,
    "forces": [[0.0, 0.0, 0.1], [0.0, 0.0, -0.1]],
    "forces_error": [[0.01] * 3] * 2,
    "acceptance": 0.5,
    "measurements": 950,
    "walkers": 64,
    "blocks": 640,
    "mean_field_energy": -0.9,
    "optimisation": None,
    "seed": 5,
    "seconds": {"sampling": 1.0},
    "cpu_seconds": {"sampling": 1.0},
    "versions": {"jqmc": "0.2.2"},
}
PLAIN: dict[str, Any] = {"two_body": 0.0, "three_body": "none", "optimisation_steps": 0}


TRIANGLE = Frame(
    np.array([1, 1, 1]), np.array([[0, 0, 0], [0, 0, 0.9], [0, 0.78, 0.45]]), np.zeros((3, 3)), (False, False, False)
)


def installed() -> None:
    """Skip where there is no jQMC."""
    try:
        qmc_env.find(None)
    except ConfigError as missing:
        pytest.skip(str(missing))


def hydrogen(distance: float = 0.74) -> Frame:
    """H2 along z, Å."""
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, distance]])
    return Frame(np.array([1, 1]), positions, np.zeros((3, 3)), (False, False, False))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., JQMC]:
    """A labeller whose environment's Python runs the given lines instead of jQMC, with `job` read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def make(lines: str, **settings: Any) -> JQMC:
        head = f"#!{sys.executable}\nimport json, os, sys, time\njob = json.load(open(sys.argv[3]))\n"
        python.write_text(head + "result = sys.argv[4]\n" + lines + "\n")
        python.chmod(0o755)
        return JQMC(sampler="vmc", basis="6-31g", environment=tmp_path / "env", **settings)

    return make


def writes(**changes: Any) -> str:
    """Lines that write a good result with some changes."""
    return f"from math import nan\nopen(result, 'w').write(json.dumps({GOOD | changes!r}))"


def test_a_basis_without_the_core_is_refused(fake: Callable[..., JQMC]) -> None:
    """Water in ccECP's basis with all electrons is refused before jQMC is asked, and with ccECP it is not."""
    pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
    water = Frame(np.array([8, 1, 1]), np.eye(3), np.zeros((3, 3)), (False,) * 3)
    made = fake("raise SystemExit('asked')")
    with pytest.raises(LabelError, match="no functions for the core of O"):
        replace(made, basis="ccecp-cc-pvdz").label(water, 0, 0)
    with pytest.raises(LabelError, match="asked"):
        replace(made, basis="ccecp-cc-pvdz", ecp="ccecp").label(water, 0, 0)


def test_hydrogen_without_jastrow() -> None:
    """VMC of the bare RHF determinant is RHF: energy and gradient of PySCF's own, units, signs and error bars with it.

    H2 at 1.0 Å in 6-31G; PySCF 2.14: -1.094807962854629 Ha, force -0.09691634 Ha/Bohr on the second atom.
    """
    installed()
    labeller = JQMC(sampler="vmc", basis="6-31g", **PLAIN, forces=True, steps=450, moves=16)
    label = labeller.label(hydrogen(1.0), 0, 0)
    assert label.extra["mean_field_energy"] == pytest.approx(-1.094807962854629 * HARTREE, abs=1e-7)
    assert 0 < label.energy_error < 0.01 * HARTREE
    assert abs(label.energy - label.extra["mean_field_energy"]) < 4 * label.energy_error
    assert label.forces is not None
    assert label.forces_error is not None
    exact = np.array([[0, 0, 0.09691634], [0, 0, -0.09691634]]) * HARTREE / BOHR
    assert label.forces_error[:, 2].max() < 0.15 * abs(exact[1, 2])  # or four errors would prove nothing
    assert (np.abs(label.forces - exact) < 4 * label.forces_error).all()
    assert 0.2 < label.extra["acceptance"] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame", "charge", "spin", "exact"),
    [
        (Frame(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3), 0, 1, -0.498232910727),
        (TRIANGLE, 1, 0, -1.271541335949),
        (TRIANGLE, 0, 1, -1.470292262717),
    ],
    ids=["H", "H3+", "H3"],
)
def test_charge_and_spin(frame: Frame, charge: int, spin: int, exact: float) -> None:
    """Ions and radicals get their own number of electrons: VMC of the bare determinant is ROHF/6-31G of PySCF 2.14."""
    installed()
    labeller = JQMC(sampler="vmc", basis="6-31g", **PLAIN, steps=450, moves=16)
    label = labeller.label(frame, charge, spin)
    assert (label.charge, label.spin) == (charge, spin)
    assert label.energy_error < 0.01 * HARTREE
    assert abs(label.energy - exact * HARTREE) < 4 * label.energy_error


def test_units_and_card(fake: Callable[..., JQMC], tmp_path: Path) -> None:
    """Hartree and Bohr become eV and Å, and the card names trial function, versions and what the error leaves out."""
    labeller = fake(writes(), forces=True)
    label = labeller.label(hydrogen(), 0, 0)
    assert label.energy == -HARTREE
    assert label.energy_error == 0.001 * HARTREE
    assert label.forces is not None
    assert label.forces[0, 2] == pytest.approx(0.1 * HARTREE / BOHR)
    assert label.method == labeller.method == "VMC, " + label.extra["trial_function"]
    assert "JSD (RHF/6-31g, Cartesian; J2, J3 ao-small; optimised in 40 steps" in label.extra["trial_function"]
    assert any("bias of the forces" in line for line in label.extra["leaves_out"])
    job = json.loads(label.input)
    assert job["positions"][1][2] == pytest.approx(0.74 / BOHR)
    assert json.loads(json.dumps(dict(label.extra))) == label.extra  # plain values, as the queue stores them
    assert not list(tmp_path.glob("qmc-*")), "a label that went well leaves no folder"


def test_lrdmc_is_another_method(fake: Callable[..., JQMC]) -> None:
    """Lattice spacing and trial function belong to the method, so that two of them never mix; sampling does not."""
    labeller = fake(writes())
    settings = {"basis": "ccecp-ccpvtz", "ecp": "ccecp", "environment": labeller.environment}
    coarse = JQMC(sampler="lrdmc", lattice_spacing=0.3, **settings)
    assert coarse.method != JQMC(sampler="lrdmc", lattice_spacing=0.2, **settings).method
    assert coarse.method != JQMC(sampler="lrdmc", lattice_spacing=0.3, three_body="none", **settings).method
    assert coarse.method == JQMC(sampler="lrdmc", lattice_spacing=0.3, steps=500, seed=9, **settings).method
    assert any("fixed nodes" in line for line in coarse.leaves_out())


def test_methods_name_what_changes_the_label(fake: Callable[..., JQMC]) -> None:
    """Start values that stay or are not the usual ones, and LRDMC's walkers, tell methods apart.

    What was optimised from the usual start keeps the method that stored labels have, letter by letter.
    """
    environment = fake("").environment

    def method(**changes: Any) -> str:
        told = {"sampler": "lrdmc", "basis": "ccecp-ccpvtz", "ecp": "ccecp", "lattice_spacing": 0.3, "walkers": 256}
        return JQMC(**told | {"environment": environment} | changes).method

    head = "LRDMC, a = 0.3 Bohr, dltmove, "
    level = "RHF/ccecp-ccpvtz, Cartesian, ccecp; "
    steps = "; optimised in 40 steps of 20x256)"
    assert method(optimisation_samples=20) == f"{head}JSD ({level}J2, J3 ao-small{steps}"
    assert method(optimisation_samples=20, two_body=0.7) == f"{head}JSD ({level}J2 0.7, J3 ao-small{steps}"
    electrons = {"ecp": None, "basis": "ccpvtz", "three_body": "mo", "optimisation_samples": 20}
    both = f"LRDMC, a = 0.3 Bohr, JSD (RHF/ccpvtz, Cartesian; J1, J2, J3 mo{steps}"
    assert method(**electrons, one_body=1.0) == both
    assert method(**electrons, one_body=0.5) == both.replace("J1", "J1 0.5")
    assert method(optimisation_steps=0) == f"{head}256 walkers, JSD ({level}J2 1.0, J3 ao-small)"
    assert method(optimisation_steps=0, sampler="vmc", two_body=0.7) == f"VMC, JSD ({level}J2 0.7, J3 ao-small)"
    assert method(**PLAIN) == f"{head}256 walkers, SD ({level.removesuffix('; ')})"


def test_a_jastrow_factor_of_an_earlier_label(fake: Callable[..., JQMC], tmp_path: Path) -> None:
    """It is another method for each such factor, whatever the start would have been without, and the driver gets it."""
    files = tmp_path / "one.h5", tmp_path / "other.h5"
    for file in files:
        file.write_text(file.name)
    one, other, optimised, rough = (
        fake("", start_from=file, optimisation_steps=steps, two_body=start)
        for file, steps, start in ((files[0], 0, 1.0), (files[1], 0, 1.0), (files[0], 5, 1.0), (files[0], 0, 0.5))
    )
    assert one.method.startswith("VMC, JSD (RHF/6-31g, Cartesian; J2, J3 ao-small; Jastrow factor of ")
    assert "; optimised in 5 steps of 60x64; Jastrow factor from " in optimised.method
    assert one.method == rough.method != other.method
    assert one._job(hydrogen(), 0, 0)["start_from"] == str(files[0])


@dataclass(frozen=True)
class Part:
    """A piece of a trial function, that is replaced as jQMC's are."""

    structure_data: Any = None
    wavefunction_data: Any = None
    jastrow_data: Any = None
    jastrow_one_body_data: Any = None
    jastrow_two_body_data: Any = None
    jastrow_three_body_data: Any = None
    jastrow_2b_param: float = 0.0
    j_matrix: Any = None
    orb_data: str = ""

    def replace(self, **changes: Any) -> Part:
        return replace(self, **changes)


def test_parameters_of_another_geometry() -> None:
    """The numbers are the other one's and the orbitals are on these atoms; other atoms and other terms are refused."""
    started = runpy.run_path(str(qmc.DRIVER))["started"]

    def trial(where: str, number: float, size: int = 2, atoms: str = "OHH") -> Part:
        three = Part(orb_data=where, j_matrix=np.full((size, size + 1), number))
        jastrow = Part(jastrow_two_body_data=Part(jastrow_2b_param=number), jastrow_three_body_data=three)
        return Part(SimpleNamespace(atomic_labels=tuple(atoms)), Part(jastrow_data=jastrow))

    jastrow = started(trial("here", 1.0), trial("there", 0.3)).wavefunction_data.jastrow_data
    assert jastrow.jastrow_two_body_data.jastrow_2b_param == 0.3
    assert jastrow.jastrow_three_body_data.orb_data == "here"
    assert np.all(jastrow.jastrow_three_body_data.j_matrix == 0.3)
    with pytest.raises(ValueError, match="start_from is of the atoms H O H, and not O H H"):
        started(trial("here", 1.0), trial("there", 0.3, atoms="HOH"))
    with pytest.raises(ValueError, match="start_from has another jastrow_three_body_data"):
        started(trial("here", 1.0), trial("there", 0.3, size=3))


def test_the_same_frame_has_the_same_seed_and_label(fake: Callable[..., JQMC]) -> None:
    """The same frame gives the same seed and so the same label; another frame or seed gives independent noise."""
    labeller = fake("r = " + repr(GOOD) + "\nr['energy'] = -job['seed'] / 1e9\nopen(result, 'w').write(json.dumps(r))")
    first = labeller.label(hydrogen(), 0, 0)
    assert labeller.label(hydrogen(), 0, 0).hash == first.hash
    assert labeller.label(hydrogen(0.7400001), 0, 0).energy != first.energy
    other = JQMC(sampler="vmc", basis="6-31g", environment=labeller.environment, seed=2)
    assert other.label(hydrogen(), 0, 0).energy != first.energy


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (writes(energy=float("nan")), "not finite|energy of nan"),
        (writes(energy_error=float("nan")), "error of nan"),
        (writes(energy_error=0.0), "no error bar"),
        (writes(forces=[[0.0, 0.0, float("nan")]] * 2), "not finite"),
        (writes(forces=[[0.0, 0.0, 1.0]], forces_error=[[1.0] * 3]), "do not fit"),
        (writes(forces=None, forces_error=None), "do not fit"),
        (writes(versions={}), "jqmc"),
        ("open(result, 'w').write('Segmentation fault')", "no result that can be read"),
        ("open(result, 'w').write('[1]')", "list"),
        ("", "no result that can be read"),
        ("raise ValueError('Electron number 3 and spin 0 are not consistent')", "Electron number 3"),
        ("os.kill(os.getpid(), 11)", "code -11"),
    ],
)
def test_every_failure_of_jqmc_is_one_label_error(
    fake: Callable[..., JQMC], tmp_path: Path, lines: str, words: str
) -> None:
    """Whatever jQMC does instead of answering becomes one LabelError with the reason; its folder stays to be read."""
    labeller = fake(lines, forces=True)
    with pytest.raises(LabelError, match=words):
        labeller.label(hydrogen(), 0, 0)
    assert len(list(tmp_path.glob("qmc-*"))) == 1


def test_a_label_over_its_time_is_ended_with_its_children(fake: Callable[..., JQMC], tmp_path: Path) -> None:
    """A label that takes too long is ended with everything that it started."""
    start_child = "import subprocess\nc = subprocess.Popen(['sleep', '60'])\nopen('pid', 'w').write(str(c.pid))\n"
    labeller = fake(start_child + "time.sleep(60)", timeout=2.0)
    start = time.monotonic()
    with pytest.raises(LabelError, match=r"stopped after 2\.0 s"):
        labeller.label(hydrogen(), 0, 0)
    assert time.monotonic() - start < 20
    assert gone(int(next(tmp_path.glob("qmc-*/pid")).read_text()))


def test_killed_worker_leaves_nothing_running(tmp_path: Path) -> None:
    """A worker that is killed with -9 ends its driver too: no hour of sampling for nobody."""
    wait = "; ".join(
        [
            "import os, runpy, threading, time, pathlib",
            f"driver = runpy.run_path({str(qmc.DRIVER)!r})",
            "threading.Thread(target=driver['_end_with_parent'], args=(os.getppid(),)).start()",
            "pathlib.Path('pid').write_text(str(os.getpid()))",
            "time.sleep(60)",
        ]
    )
    worker = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {wait!r}])"
    process = subprocess.Popen([sys.executable, "-c", worker], cwd=tmp_path)
    pid = tmp_path / "pid"
    try:
        until = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        assert gone(int(pid.read_text()))
    finally:
        process.kill()
        process.wait()


def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds (a zombie has ended)."""
    for _ in range(200):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_periodic_frame_is_refused(fake: Callable[..., JQMC]) -> None:
    """jQMC has no periodic boundaries here: the frame is refused, not computed as a cluster."""
    frame = Frame(np.array([1, 1]), hydrogen().positions, np.eye(3) * 10)
    with pytest.raises(LabelError, match="cut"):
        fake(writes()).label(frame, 0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "dmc"},
        {"determinant": "Pfaffian"},
        {"ecp": "ccecp", "one_body": 1.0},  # ends in NaN
        {"epsilon_AS": 0.0},
        {"lattice_spacing": 0.0},
        {"steps": 100},
        {"determinant": "JAGP", "two_body": 0.0, "three_body": "none"},
        {"three_body": "ao-tiny"},
        {"target_error": -1.0},
        {"target_error": 0.0},
        {"optimisation_delta": -0.01},
        {"optimisation_delta": 0.0},
        {"further_spacings": [0.3]},  # of VMC
        {"sampler": "lrdmc", "further_spacings": [0.2]},  # which is the default of lattice_spacing
        {"sampler": "lrdmc", "further_spacings": [0.0]},
        {"sampler": "lrdmc", "further_spacings": [0.3], "forces": True},
        {"optimise_orbitals": True, "determinant": "JAGP"},
        {"optimise_orbitals": True, "optimisation_steps": 0},
        {"start_from": Path("nowhere.h5")},
        {"start_from": qmc.DRIVER, "three_body": "mo"},  # orbitals of another geometry
        {"start_from": qmc.DRIVER, "two_body": 0.0, "three_body": "none"},
    ],
)
def test_settings_that_end_badly_are_refused_first(fake: Callable[..., JQMC], settings: dict[str, Any]) -> None:
    """What is known to end badly is refused before the first frame is claimed."""
    environment = fake("").environment
    with pytest.raises(ConfigError):
        JQMC(**({"sampler": "vmc", "basis": "6-31g", "environment": environment} | settings))


def test_without_jqmc_the_way_to_get_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jQMC the sentence says how to get it; the variable is obeyed."""
    monkeypatch.setenv(qmc_env.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"beadwork qmc-env .*nowhere"):
        JQMC(sampler="vmc", basis="6-31g")


def test_the_environment_is_made_of_pinned_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is asked for the pinned packages; where it fails, or jQMC does not start, the error says which."""
    asked: list[list[str]] = []
    fail_at: list[int] = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        failed = len(asked) in fail_at
        return subprocess.CompletedProcess(command, int(failed), "jQMC 0.2.2\n", "ImportError: libmpi\n")

    monkeypatch.setattr(qmc_env.subprocess, "run", run)
    assert qmc_env.install(tmp_path) == "jQMC 0.2.2"
    assert asked[1] == [*module("pip", asked[1][0]), "install", "-r", str(qmc_env.REQUIREMENTS)]
    for call, words in [(5, "pip could not"), (8, "libmpi")]:
        fail_at.append(call)
        with pytest.raises(ConfigError, match=words):
            qmc_env.install(tmp_path)
    pins = [line for line in qmc_env.REQUIREMENTS.read_text().splitlines() if line[0] not in "#-"]
    assert all("==" in line for line in pins)


class Sampler:
    """Stands for jQMC's: an error that falls as 1/sqrt(n) from 1 Ha at n = 1."""

    def __init__(self, broken: bool = False) -> None:
        self.done, self.runs, self.broken = 0, 0, broken

    def run(self, num_mcmc_steps: int, max_time: int) -> None:
        self.done += num_mcmc_steps
        self.runs += 1

    def get_E(self, num_mcmc_warmup_steps: int, num_mcmc_bin_blocks: int) -> tuple[float, float, float, float]:
        error = (self.done - num_mcmc_warmup_steps) ** -0.5
        return float("nan") if self.broken else -1.0, error, 1.0, 0.1


def sampled(monkeypatch: pytest.MonkeyPatch, sampler: Sampler, electrons: int = 8, **changes: Any) -> dict[str, Any]:
    """What the driver makes of a sampler."""
    driver = runpy.run_path(str(qmc.DRIVER))
    job = {"method": "vmc", "steps": 500, "most_steps": 100_000, "target_error": None, "forces": False, "walkers": 1}
    job |= {"moves": 50, "lattice_spacing": 0.15}
    determinant = SimpleNamespace(num_electron_up=electrons // 2, num_electron_dn=electrons // 2)
    hamiltonian = SimpleNamespace(wavefunction_data=SimpleNamespace(geminal_data=determinant))
    names = driver["sample"].__globals__
    monkeypatch.setitem(names, "_walkers", lambda *_: sampler)
    monkeypatch.setitem(names, "_acceptance", lambda _: 0.5)
    result: dict[str, Any] = driver["sample"](job | changes, hamiltonian, -1.0)
    return result


def test_sampling_ends_at_the_target_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling goes on until the error is as small as was asked for, in few rounds, and never beyond most_steps."""
    assert sampled(monkeypatch, Sampler())["measurements"] == 450
    long = Sampler()
    assert sampled(monkeypatch, long, target_error=0.01)["energy_error"] <= 0.01
    assert 10_000 <= long.done < 12_000
    assert long.runs == 2
    short = sampled(monkeypatch, Sampler(), target_error=0.01, most_steps=2000)
    assert short["measurements"] == 1950
    assert short["energy_error"] > 0.01


def test_warm_up_is_a_stretch_of_imaginary_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement of many electrons on a fine lattice is a short projection, and walkers begin far from settled."""
    warm_up = runpy.run_path(str(qmc.DRIVER))["warm_up"]
    job = {"method": "lrdmc", "moves": 30, "lattice_spacing": 0.2}
    assert warm_up(job, 32) == 160  # (H2O)4: 2 / Ha, a² / 3 a move of one of 32 electrons
    assert warm_up(job, 2) == warm_up(job | {"method": "vmc"}, 32) == 50
    long = Sampler()
    long.num_gfmc_collect_steps = 10  # type: ignore[attr-defined]
    result = sampled(monkeypatch, long, electrons=32, **job)
    assert (long.done, result["measurements"]) == (610, 450)


def test_energy_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """LRDMC's energy by the length of its products of weights, over the same measurements; the label's own is kept."""
    heard = []

    class Walkers(Sampler):
        num_gfmc_collect_steps = 10

        def get_E(self, num_mcmc_warmup_steps: int, num_mcmc_bin_blocks: int) -> tuple[float, float, float, float]:
            heard.append((self.num_gfmc_collect_steps, num_mcmc_warmup_steps))
            return -1.0 - 0.001 * self.num_gfmc_collect_steps, 0.01, 1.0, 0.1

    result = sampled(monkeypatch, walkers := Walkers(), method="lrdmc")
    assert result["energy"] == pytest.approx(-1.010)
    assert result["energy_by_window"] == pytest.approx({5: -1.005, 10: -1.010, 20: -1.020, 40: -1.040})
    assert {window + warmup for window, warmup in heard} == {60}, "jQMC counts the warm-up after the window"
    assert walkers.num_gfmc_collect_steps == 10
    assert sampled(monkeypatch, Sampler())["energy_by_window"] == {}


def at_zero(
    monkeypatch: pytest.MonkeyPatch, energies: dict[float, float], errors: dict[float, float], **changes: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the driver makes of energies at some lattice spacings, and the jobs that it sampled."""
    driver = runpy.run_path(str(qmc.DRIVER))
    jobs: list[dict[str, Any]] = []

    def sample(job: dict[str, Any], *_: Any) -> dict[str, Any]:
        jobs.append(job)
        a = job["lattice_spacing"]
        found = {"energy": energies[a], "energy_error": errors[a], "energy_error_half_the_blocks": errors[a]}
        return found | {"energy_by_window": {5: energies[a] + 1}, "measurements": 100, "acceptance": 0.5}

    monkeypatch.setitem(driver["extrapolated"].__globals__, "sample", sample)
    first, *further = energies
    job = {"lattice_spacing": first, "further_spacings": further, "target_error": None, "seed": 5} | changes
    return driver["extrapolated"](job, None, -1.0), jobs


def test_energies_of_lattice_spacings_are_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value at a = 0 of the weighted line in a², with its error: NumPy's own, and exact on a line. Points that lie
    further from it than their bars, as where a² is not all, make the label's bar longer in that proportion."""
    errors = {0.3: 0.002, 0.2: 0.004, 0.45: 0.001}
    line = {a: -1.0 + 0.5 * a * a for a in errors}
    found, jobs = at_zero(monkeypatch, line, errors)
    assert found["energy"] == pytest.approx(-1.0, abs=1e-12)
    assert found["energy_by_window"][5] == pytest.approx(0.0, abs=1e-12)
    assert found["chi_square"] == pytest.approx(0.0, abs=1e-12)
    assert found["measurements"] == 300
    assert len({job["seed"] for job in jobs}) == 3, "noise that is alike would not average"
    off = {0.3: -0.957, 0.2: -0.985, 0.45: -0.8985}
    found, _ = at_zero(monkeypatch, off, errors)
    square, weight = np.square(list(off)), 1 / np.array(list(errors.values()))
    fitted, spread = np.polyfit(square, list(off.values()), 1, w=weight, cov="unscaled")
    assert found["energy"] == pytest.approx(fitted[1], abs=1e-10)
    assert found["energy_error"] == pytest.approx(spread[1, 1] ** 0.5, rel=1e-9)
    away = (np.array(list(off.values())) - np.polyval(fitted, square)) * weight
    assert found["chi_square"] == pytest.approx((away**2).sum(), rel=1e-6)
    assert found["chi_square"] < 1
    bent = line | {0.45: line[0.45] + 0.03}
    found, _ = at_zero(monkeypatch, bent, errors)
    assert found["chi_square"] > 5
    scaled = spread[1, 1] ** 0.5 * found["chi_square"] ** 0.5
    assert found["energy_error"] == pytest.approx(scaled, rel=1e-9)


def test_each_spacing_is_sampled_for_the_error_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target is that of the label: each spacing gets the smaller one with which the extrapolation reaches it."""
    _, jobs = at_zero(monkeypatch, {0.2: -1.0, 0.3: -1.0}, {0.2: 1.0, 0.3: 1.0}, target_error=0.01)
    told = {job["lattice_spacing"]: job["target_error"] for job in jobs}
    reached, _ = at_zero(monkeypatch, {0.2: -1.0, 0.3: -1.0}, told)
    assert reached["energy_error"] == pytest.approx(0.01, rel=1e-9)
    assert told[0.2] == pytest.approx(0.01 / np.hypot(1.8, 0.8))


def test_an_extrapolated_label_is_another_method(fake: Callable[..., JQMC]) -> None:
    """Its method names a = 0 and where it comes from, in whatever order; its card has each spacing's energy in eV."""
    one = {"energy": -1.1, "energy_error": 0.01, "measurements": 7, "acceptance": 0.9}
    made = fake(writes(by_spacing={"0.2": one, "0.3": one}, chi_square=0.0))
    made = replace(made, sampler="lrdmc", lattice_spacing=0.3, further_spacings=[0.2])
    assert made.method.startswith("LRDMC, a = 0 from 0.2, 0.3 Bohr, JSD")
    assert made.method == replace(made, lattice_spacing=0.2, further_spacings=[0.3]).method
    label = made.label(hydrogen(), 0, 0)
    assert label.extra["lattice_spacing"] == 0
    assert label.extra["by_spacing"]["0.2"]["energy"] == -1.1 * HARTREE
    assert any("no line in a²" in text for text in label.extra["leaves_out"])
    optimised = replace(made, optimise_orbitals=True)
    assert "orbitals optimised" in optimised.method
    assert json.loads(optimised.label(hydrogen(), 0, 0).input)["orbitals"] is True


def test_nonsense_of_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, and a wave function that ran away to -1e38 Ha, end the driver instead of becoming a label."""
    with pytest.raises(FloatingPointError, match="nan"):
        sampled(monkeypatch, Sampler(broken=True))
    near = runpy.run_path(str(qmc.DRIVER))["near"]
    near(-16.9, -17.2, "vmc")
    for energy in (-2.3e38, -25.0, float("nan")):
        with pytest.raises(FloatingPointError, match="diverged"):
            near(-16.9, energy, "vmc")


def test_step_of_the_optimiser(fake: Callable[..., JQMC], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `optimisation_delta` the step minimises the energy; with it, it is just that long, and is named."""
    heard: dict[str, Any] = {}

    class Walkers:
        hamiltonian_data = "better"

        def __init__(self, **settings: Any) -> None:
            heard.update(settings)

        def run_optimize(self, **settings: Any) -> None:
            heard.update(settings["optimizer_kwargs"])

        def run(self, **_: Any) -> None:
            pass

        def get_E(self, **_: Any) -> tuple[float, float, float, float]:
            return -1.0, 0.1, 1.0, 0.1

    tree = SimpleNamespace(tree_leaves=lambda _: [])
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(tree_util=tree))
    monkeypatch.setitem(sys.modules, "jqmc", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "jqmc.jqmc_mcmc", SimpleNamespace(MCMC=Walkers))
    optimise = runpy.run_path(str(qmc.DRIVER))["_optimise"]
    for delta, share, step in ((None, 1.0, 1.0), (None, 0.3, 0.3), (0.01, 1.0, 0.01), (0.01, 0.3, 0.003)):
        labeller = fake("", optimisation_delta=delta)
        assert ("delta 0.01" in labeller.method) == (delta is not None)
        better, _ = optimise(labeller._job(hydrogen(), 0, 0), "start", share, geminal=False, seed=1)
        assert better == "better"
        assert heard["delta"] == pytest.approx(step)
        assert heard["use_lm"] == heard["comput_e_L_param_deriv"] == (delta is None)


def test_a_diverging_optimisation_begins_again_with_shorter_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimisation that diverges is begun again with shorter steps; one that always does ends the label."""
    steadily = runpy.run_path(str(qmc.DRIVER))["steadily"]
    good_below = 0.5

    def optimise(job: Any, hamiltonian: Any, share: float, **_: Any) -> tuple[Any, dict[str, float]]:
        assert hamiltonian == "start", "each attempt begins at the start"
        return "better", {"energy": -1.1 if share < good_below else -1e24}

    monkeypatch.setitem(steadily.__globals__, "_optimise", optimise)
    better, report = steadily({}, "start", -1.0, geminal=False, seed=1)
    assert (better, report["share_of_step"]) == ("better", 0.3)
    good_below = 0.0
    with pytest.raises(FloatingPointError, match="diverged"):
        steadily({}, "start", -1.0, geminal=False, seed=1)


def test_driver_stands_alone() -> None:
    """The driver runs where beadwork is not installed: it imports the standard library, NumPy, PySCF and jQMC's."""
    roots = set()
    for node in ast.walk(ast.parse(qmc.DRIVER.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).partition(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"jax", "jqmc", "numpy", "pyscf"}
