"""Infrared and Raman spectra against amplitudes that were put in, and against harmonic analysis of the same models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.constants as si

from beadwork.analyse.response import infrared, raman
from beadwork.analyse.runs import open_run
from beadwork.analyse.spectrum import LIGHT
from beadwork.cli import main
from beadwork.doctor.curvature import vibrations
from beadwork.errors import ConfigError
from beadwork.frame import Frame
from beadwork.potential.load import load
from beadwork.potential.potential import Potential
from beadwork.potential.response import Role
from beadwork.units import BOHR
from support.exact_runs import KELVIN, write_about, write_extra
from support.response import Charges

SPACING = 1.0  # fs, two steps
#: km/mol of one e²/dalton, and kT in dalton Å²/fs²
KM_MOL = 1e-3 * si.N_A / (12 * si.epsilon_0 * si.c**2) * si.e**2 / si.atomic_mass
KT = si.k * KELVIN / si.atomic_mass * 1e20 / 1e30


def mode(wavenumber: float, frames: int = 3000, phase: float = 0.4) -> np.ndarray:
    """(F,) √dalton Å: a mass-weighted coordinate with the kinetic energy that it has at KELVIN."""
    omega = 2 * np.pi * LIGHT * wavenumber
    return np.sqrt(2 * KT) / omega * np.cos(omega * SPACING * np.arange(frames) + phase)


def write(folder: Path, **extras: np.ndarray) -> Path:
    """A run of these, in atomic units."""
    folder.mkdir(exist_ok=True)
    write_about(folder)
    for key, values in extras.items():
        write_extra(folder, key, range(0, 2 * len(values), 2), values)
    return folder


def area(found, low: float, high: float, of: np.ndarray | None = None) -> float:
    """Of the lines between two wavenumbers."""
    inside = (found.wavenumbers >= low) & (found.wavenumbers < high)
    return float((found.intensity if of is None else of)[inside].sum() * found.wavenumbers[1])


def test_intensities_are_those_of_harmonic_modes(tmp_path: Path) -> None:
    """Two modes with known ∂mu/∂Q: peaks within half a wavenumber, areas N_A |∂mu/∂Q|² / (12 ε0 c²) in km/mol whatever
    the wavenumber; 42.26 km/mol is one (Debye/Å)²/dalton, as textbooks have it. Of members with dipoles 0.9 and 1.1
    times as large the band is the standard deviation of 0.81 and 1.21."""
    assert pytest.approx(42.2561, rel=1e-4) == KM_MOL * 0.2081943**2
    slopes = {1650.0: np.array([0.2, -0.1, 0.05]), 3700.0: np.array([0.0, 0.3, 0.1])}
    dipole = sum(np.outer(mode(w, phase=w), slope) for w, slope in slopes.items()) / BOHR
    members = np.stack((0.9 * dipole, 1.1 * dipole), axis=1)
    found = infrared([open_run(write(tmp_path, dipole=dipole, committee_dipole=members))], window=400)
    assert found.peaks == pytest.approx([1650, 3700], abs=0.5)
    for low, high, w in ((1000, 2500, 1650.0), (2500, 4500, 3700.0)):
        assert area(found, low, high) == pytest.approx(KM_MOL * (slopes[w] ** 2).sum(), rel=0.02)
    assert found.members.shape == (len(found.wavenumbers), 2)
    top = found.intensity.argmax()
    assert found.members[top] == pytest.approx(found.intensity[top] * np.array([0.81, 1.21]), rel=1e-9)
    assert found.committee[top] == pytest.approx(found.intensity[top] * 0.4 / np.sqrt(2), rel=1e-9)


def test_raman_sees_the_component_between_two_directions(tmp_path: Path) -> None:
    """A mode that changes alpha_zz alone and one that changes alpha_xy: each is seen with its directions, of any
    length, and not with the other's; areas are (∂a/∂Q)² in Å⁴/dalton."""
    alpha = np.zeros((3000, 3, 3))
    alpha[:, 2, 2] = 10.0 + 0.7 * mode(1650.0) / BOHR**3
    alpha[:, 0, 1] = alpha[:, 1, 0] = 0.5 * mode(3700.0) / BOHR**3
    runs = [open_run(write(tmp_path, polarizability=alpha))]
    found = raman(runs, (0, 0, 2), (0, 0, 1), window=400)
    assert found.peaks == pytest.approx([1650], abs=0.5)
    assert area(found, 1000, 2500) == pytest.approx(0.7**2, rel=0.02)
    assert found.members is None
    crossed = raman(runs, (1, 0, 0), (0, 3, 0), window=400)
    assert crossed.peaks == pytest.approx([3700], abs=0.5)
    assert area(crossed, 2500, 4500) == pytest.approx(0.5**2, rel=0.02)
    assert raman(runs, (1, 1, 0), (1, -1, 0), window=400).intensity.max() < 1e-9 * crossed.intensity.max()
    with pytest.raises(ConfigError, match=r"direction.*no length"):
        raman(runs, (0, 0, 0), (0, 0, 1))


def test_the_mean_of_the_beads_is_what_vibrates(tmp_path: Path) -> None:
    """Two beads that move against each other have no spectrum, and the sum of both has that of their mean."""
    dipole = np.outer(mode(1650.0), [0.2, 0, 0]) / BOHR
    other = np.outer(mode(3000.0), [0, 0.2, 0]) / BOHR
    write_about(tmp_path, beads=2)
    for bead, sign in enumerate((1, -1)):
        write_extra(tmp_path, "dipole", range(0, 6000, 2), dipole + sign * other, bead)
    found = infrared([open_run(tmp_path)], window=400)
    assert found.peaks == pytest.approx([1650], abs=0.5)
    (tmp_path / "run.dipole_1").unlink()
    with pytest.raises(ConfigError, match="no dipole of every bead"):
        infrared([open_run(tmp_path)])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x + 40.0 * (np.arange(len(x)) > 700)[:, None], "jumps after step 1400.*pbc='False'"),
        # more than one in 900 frames, up to half of them
        (lambda x: x + 40.0 * (np.arange(len(x)) // 500)[:, None], "jumps after step 998.*pbc='False'"),
        (lambda x: x + 10.0 * (np.arange(len(x)) // 2 % 2)[:, None], "jumps after step .*pbc='False'"),
        (lambda x: x[:, :2], "not 3 numbers a step"),
        (lambda x: x[:600], "twice the window"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 9, np.nan, x), "not 3 numbers a step"),
    ],
)
def test_what_is_refused(tmp_path: Path, change, sentence: str) -> None:
    """A dipole that jumps by a quantum (folded atoms), once or often, columns that are missing, too short a run, a
    number that is none."""
    dipole = np.outer(mode(1650.0), [0.2, 0.1, 0]) / BOHR
    with pytest.raises(ConfigError, match=sentence):
        infrared([open_run(write(tmp_path, dipole=change(dipole)))], window=400)


def test_folded_atoms_are_refused_where_they_are_known(tmp_path: Path) -> None:
    """In a box of 64 molecules six frames in ten have an atom that was folded, and the jumps are all that there is to
    see: the server's record says it, and no spectrum is made. Polarizabilities do not jump."""
    dipole = np.outer(mode(1650.0), [0.2, 0.1, 0]) / BOHR
    write(tmp_path, dipole=dipole, polarizability=dipole[:, :, None] * np.ones(3))
    assert len(infrared([open_run(tmp_path)], window=400).peaks) == 1
    write_about(tmp_path, dipole_jumps=True)
    with pytest.raises(ConfigError, match=r"folded atoms into the cell.*without pbc='True'"):
        infrared([open_run(tmp_path)], window=400)
    assert len(raman([open_run(tmp_path)], (1, 0, 0), (1, 0, 0), window=400).peaks) == 1


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both commands write a table and a picture and tell the peaks."""
    dipole = np.outer(mode(1650.0), [0.2, 0.1, 0]) / BOHR
    alpha = np.array([np.eye(3) * x for x in mode(1650.0)]) / BOHR**3
    write(tmp_path, dipole=dipole, committee_dipole=np.stack((dipole, dipole), axis=1), polarizability=alpha)
    assert main(["analyse", "infrared", str(tmp_path), "--window", "400"]) == 0
    ends = [f"--{end}" for end in ("incident", "scattered")]
    assert main(["analyse", "raman", str(tmp_path), ends[0], "0", "0", "1", ends[1], "0", "0", "1"]) == 0
    told = capsys.readouterr().out
    assert told.count("peaks at 1650 cm^-1") == 2
    assert "by 2 members" in told
    for stem in ("infrared", "raman"):
        assert (tmp_path / f"{stem}.png").stat().st_size > 1000
    assert (tmp_path / "infrared.csv").read_text().startswith("wavenumber (cm^-1),intensity (km/mol cm)")


def run_of(potential: Potential, frame: Frame, masses: np.ndarray, steps: int) -> Sequence[np.ndarray]:
    """(steps, 3) e Bohr: dipoles along velocity Verlet with 0.5 fs from rest, so that nothing turns."""
    unit = si.e / si.atomic_mass * 1e20 / 1e30  # eV/Å over dalton, in Å/fs²
    positions = frame.positions.copy()
    velocities = np.zeros_like(positions)
    found = []
    answer = potential.evaluate([frame])
    for _ in range(steps):
        found.append(answer.response["dipole"].mean[0] / BOHR)
        velocities += 0.25 * unit * answer.forces / masses[:, None]
        positions = positions + 0.5 * velocities
        answer = potential.evaluate([Frame(frame.numbers, positions, frame.cell, frame.pbc)])
        velocities += 0.25 * unit * answer.forces / masses[:, None]
    return np.array(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_peaks_of_a_molecule_are_its_harmonic_frequencies(tmp_path: Path) -> None:
    """A water molecule on the shipped models with fixed charges as its dipole, moving a little about its minimum: the
    infrared spectrum has three peaks, within 2 cm^-1 of where the curvature of the same models has its three vibrations
    with this time step."""
    from ase import Atoms
    from ase.optimize import BFGS

    from beadwork.potential.calculator import BeadworkCalculator

    potential = load(Path(__file__).parents[2] / "models" / "water-highlevel" / "baseline")
    atoms = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], calculator=BeadworkCalculator(potential))
    BFGS(atoms, logfile=None).run(fmax=1e-5)
    frame = Frame.from_atoms(atoms)
    role = Role("dipole", (Charges({8: -0.8, 1: 0.4}),), np.ones(1))
    # one bond longer, and the other turned
    along, across = (atoms.positions[k] - atoms.positions[0] for k in (1, 2))
    across = np.cross(across, np.cross(along, across))
    away = 0.005 * np.array([np.zeros(3), along / np.linalg.norm(along), across / np.linalg.norm(across)])
    start = Frame(frame.numbers, frame.positions + away, frame.cell, frame.pbc)
    dipoles = run_of(potential.with_also([role]), start, atoms.get_masses(), 3000)
    write_about(tmp_path)
    write_extra(tmp_path, "dipole", range(3000), dipoles)
    found = infrared([open_run(tmp_path)], window=700)
    modes = vibrations(potential, frame, list(atoms.symbols), atoms.get_masses())
    omegas = np.sqrt(np.sort(modes.omega2)[-3:])
    # velocity Verlet's own frequency of a harmonic oscillator, with time steps of 0.5 fs
    wanted = np.arcsin(0.25 * omegas) / 0.25 / (2 * np.pi * LIGHT)
    print("peaks", np.round(found.peaks, 1), "harmonic", np.round(wanted, 1))
    assert found.peaks == pytest.approx(wanted.tolist(), abs=2.0)
