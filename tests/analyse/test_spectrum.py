"""Densities of states against frequencies that were put in, against sums done by hand, and against i-PI's own tool."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ipi.utils.units import Elements

from beadwork.analyse.runs import open_run
from beadwork.analyse.spectrum import LIGHT, _density, members, spectrum
from beadwork.cli import main
from beadwork.errors import ConfigError
from support.exact_runs import write_about, write_frames

NAMES = ["O", "H", "H"]
MASSES = np.array([Elements.mass(name) for name in NAMES])
SPACING = 1.0  # fs, two steps


def vibrating(waves: Sequence[tuple[int, float, float]], frames: int = 8000, seed: int = 0) -> np.ndarray:
    """Velocities (F, 3, 3): (atom, cm^-1, energy), each in a direction and with a phase of its own."""
    rng = np.random.default_rng(seed)
    times = SPACING * np.arange(frames)
    velocities = np.zeros((frames, 3, 3))
    for k, (atom, wavenumber, energy) in enumerate(waves):
        phase = 2 * np.pi * rng.uniform()
        wave = np.cos(2 * np.pi * LIGHT * wavenumber * times + phase)
        velocities[:, atom, k % 3] += np.sqrt(2 * energy / MASSES[atom]) * wave
    return velocities


def write(folder: Path, velocities: np.ndarray, steps: Sequence[int] | None = None, **about: object) -> Path:
    """A run of them."""
    folder.mkdir(exist_ok=True)
    write_about(folder, **about)
    steps = steps or range(0, 2 * len(velocities), 2)
    write_frames(folder / "run.v.xyz", NAMES, steps, velocities, "v_centroid", "velocity", "atomic_unit")
    return folder


def test_light_is_as_fast_as_it_is() -> None:
    """cm/fs, by i-PI's constants."""
    assert pytest.approx(2.99792458e-5, rel=1e-6) == LIGHT


def test_frequencies_that_were_put_in(tmp_path: Path) -> None:
    """Peaks within half a wavenumber, at each element its own; the area is 3 N, and each line has the part of it that
    its energy is of all, whatever the mass."""
    velocities = vibrating([(0, 400.0, 1e-3), (0, 1650.0, 0.5e-3), (1, 3500.0, 1e-3), (2, 1650.0, 1.5e-3)])
    found = spectrum([open_run(write(tmp_path, velocities))], window=400)
    assert found.peaks["O"] == pytest.approx([400, 1650], abs=0.5)
    assert found.peaks["H"] == pytest.approx([1650, 3500], abs=0.5)
    assert found.peaks["all"] == pytest.approx([400, 1650, 3500], abs=0.5)
    width = found.wavenumbers[1]
    assert found.elements["all"].sum() * width == pytest.approx(9, rel=0.01)
    for low, high, part in ((0, 1000, 1 / 4), (1000, 2500, 2 / 4), (2500, 4500, 1 / 4)):
        inside = (found.wavenumbers >= low) & (found.wavenumbers < high)
        assert found.elements["all"][inside].sum() * width == pytest.approx(9 * part, rel=0.03)
    assert np.allclose(found.elements["all"], found.elements["O"] + found.elements["H"])
    line = found.elements["O"][found.wavenumbers < 1000]
    half = found.wavenumbers[: len(line)][line > line.max() / 2]
    assert np.ptp(half) == pytest.approx(found.resolution, rel=0.15)


@pytest.mark.parametrize(
    ("names", "about", "parts"),
    [
        (["O", "D", "D"], {}, {"O": 3, "D": 6}),
        (["O", "H", "D"], {}, {"O": 3, "H": 3, "D": 3}),
        (["O", "H", "H"], {"masses": {"O": 15.9994, "H": 2.0141}}, {"O": 3, "H": 6}),
    ],
)
def test_masses_are_those_of_what_moved(
    tmp_path: Path, names: list[str], about: dict[str, object], parts: dict[str, float]
) -> None:
    """Each atom has as much kinetic energy as any other, so each has three degrees of freedom: of heavy water too, be
    it heavy by its name or by the input's masses."""
    heavy = np.array([Elements.mass(name if name == "O" or not about else "D") for name in names])
    frames = vibrating([(atom, 500.0 * (k + 1), 1e-3) for atom in range(3) for k in range(3)], 1600)
    write_about(tmp_path, **about)
    frames *= np.sqrt(MASSES / heavy)[:, None]
    write_frames(tmp_path / "run.v.xyz", names, range(0, 3200, 2), frames, "v_centroid", "velocity", "atomic_unit")
    found = spectrum([open_run(tmp_path)], window=150.0)
    area = {name: float(np.trapezoid(values, found.wavenumbers)) for name, values in found.elements.items()}
    assert area.pop("all") == pytest.approx(9, rel=0.01)
    assert area == pytest.approx(parts, rel=0.02)
    write_about(tmp_path, masses={names[1]: None})
    with pytest.raises(ConfigError, match=f"atoms called {names[1]} in .* have no mass that is known, or several"):
        spectrum([open_run(tmp_path)], window=150.0)


def test_the_sum_by_hand() -> None:
    """Autocorrelation, window and transform one by one, of velocities at random."""
    rng = np.random.default_rng(2)
    frames, lag = rng.normal(size=(60, 3, 3)), 20
    found = _density(NAMES, MASSES, frames, lag)
    kinetic = sum(MASSES[i] * (frames[t, i] ** 2).sum() for t in range(60) for i in range(3)) / 60
    for name, atoms in (("O", [0]), ("H", [1, 2])):
        wanted = np.zeros(4 * lag + 1)
        for t in range(lag):
            of = sum(MASSES[i] * (frames[: 60 - t, i] * frames[t:, i]).sum() for i in atoms) / (60 - t)
            weight = (0.5 if t == 0 else 1.0) * (0.5 + 0.5 * np.cos(np.pi * t / lag))
            wanted += weight * of * np.cos(2 * np.pi * t * np.arange(4 * lag + 1) / (8 * lag))
        assert np.allclose(found[name], 4 * 9 / kinetic * wanted, atol=1e-10)


def test_ipis_own_tool_gives_the_same(tmp_path: Path) -> None:
    """`i-pi-getacf` of the same file, with the same window and stretches that are long against it: the same lines."""
    rng = np.random.default_rng(3)
    frames, lag = 6000, 200
    noise = rng.normal(size=(frames, 3, 3))
    velocities = 1e-4 * noise + vibrating([(1, 1500.0, 2e-4), (2, 3000.0, 2e-4)], frames)
    run = open_run(write(tmp_path, velocities))
    tool = Path(sys.executable).with_name("i-pi-getacf")
    command = [sys.executable, tool, "-ifile", "run.v.xyz", "-mlag", str(lag), "-bsize", str(frames // 10)]
    command += ["-ftpad", str(3 * lag), "-ftwin", "cosine-hanning", "-dt", f"{SPACING} femtosecond"]
    command += ["-labels", "H", "-oprefix", "theirs"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    omega, theirs = np.loadtxt(tmp_path / "theirs_facf.data", usecols=(0, 1)).T
    ours = spectrum([run], window=lag * SPACING)
    scaled = np.interp(ours.wavenumbers, omega / omega[1] * ours.wavenumbers[1], theirs)
    scaled *= ours.elements["H"].sum() / scaled.sum()
    assert np.abs(scaled - ours.elements["H"]).max() < 0.03 * scaled.max()
    assert ours.wavenumbers[ours.elements["H"].argmax()] == ours.wavenumbers[scaled.argmax()]


def test_centroid_of_all_beads_and_gaps(tmp_path: Path) -> None:
    """Velocities of every bead make those of the centroid; a gap in time is bridged by no stretch."""
    whole = vibrating([(1, 2000.0, 1e-3)])
    apart = np.random.default_rng(4).normal(size=whole.shape) * 1e-3
    write_about(tmp_path, beads=2)
    for bead, sign in enumerate((1, -1)):
        file = tmp_path / f"run.v_{bead}.xyz"
        steps = range(0, 2 * len(whole), 2)
        write_frames(file, NAMES, steps, whole + sign * apart, "velocities", "velocity", "atomic_unit", bead=bead)
    beads = spectrum([open_run(tmp_path)], window=300)
    alone = spectrum([open_run(write(tmp_path / "one", whole))], window=300)
    assert np.allclose(beads.elements["all"], alone.elements["all"], atol=1e-4 * alone.elements["all"].max())
    torn = [*range(0, 4000, 2), *range(4100, 8100, 2)]
    found = spectrum([open_run(write(tmp_path / "torn", whole[:4000], torn))], window=300)
    assert found.stretches == 6  # three of each side
    assert found.peaks["all"] == pytest.approx([2000], abs=1)
    (tmp_path / "run.v_1.xyz").unlink()
    with pytest.raises(ConfigError, match="no velocities of the centroid"):
        spectrum([open_run(tmp_path)])


def test_a_band_over_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Members that were run one by one: the mean, and the standard deviation over them, in the CSV with every member's
    own; a band where their lines are apart and none where they agree."""
    folders = [
        write(tmp_path / f"member-{k}", vibrating([(1, 1500.0 + shift, 1e-3), (2, 3000.0, 1e-3)], 3000))
        for k, shift in enumerate((-40.0, 0.0, 40.0))
    ]
    each = [spectrum([open_run(folder)]) for folder in folders]
    found = members(each)
    stack = np.array([of.elements["all"] for of in each])
    assert np.allclose(found.elements["all"], stack.mean(axis=0))
    assert np.allclose(found.errors["all"], stack.std(axis=0, ddof=1))
    at = np.searchsorted(found.wavenumbers, [1540, 3000])
    assert found.errors["all"][at[0]] > 50 * found.errors["all"][at[1]]
    command = ["analyse", "vdos", *map(str, folders), "--members", "--out", str(tmp_path / "v")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "density of states from 3 members" in said
    assert found.noise is not None
    assert np.allclose(found.noise["all"] ** 2, np.mean([of.errors["all"] ** 2 for of in each], axis=0))
    assert "the band is" in said
    for folder, one in zip(folders, each, strict=True):
        assert f"{folder}: peaks at {', '.join(f'{peak:.0f}' for peak in one.peaks['all'])} cm^-1" in said
    assert "3000 cm^-1" in said
    with open(tmp_path / "v.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[at[0]]["all (cm)"]) == pytest.approx(found.elements["all"][at[0]], rel=1e-5)
    assert float(rows[at[0]][f"all, {folders[1]} (cm)"]) == pytest.approx(stack[1, at[0]], rel=1e-5)
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no standard deviation over members"):
        members(each[:1])


def test_velocities_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    """Too few for the window, too seldom for the fastest vibration, at two strides, after the end, without a time."""
    run = open_run(write(tmp_path / "a", vibrating([(1, 1000.0, 1e-3)], 200)))
    other = open_run(write(tmp_path / "b", vibrating([(1, 1000.0, 1e-3)], 200), range(0, 800, 4)))
    slow = open_run(write(tmp_path / "c", vibrating([(1, 1000.0, 1e-3)], 200), range(0, 4000, 20)))
    (tmp_path / "e").mkdir()
    write_about(tmp_path / "e")
    still = np.zeros((200, 2, 3))
    write_frames(tmp_path / "e" / "run.v.xyz", ["O", "H"], range(0, 400, 2), still, "v_centroid", "velocity", "")
    smaller = open_run(tmp_path / "e")
    timeless = open_run(write(tmp_path / "d", vibrating([(1, 1000.0, 1e-3)], 200), time_step_fs=None))
    hot = replace(run, about=run.about | {"temperature_K": 350.0})
    for runs, options, said in (
        ([run], {}, "no stretch of velocities in .* of 1000 fs"),
        ([run, other], {"window": 50.0}, "different times between velocities, fs: 1.0 and 2.0"),
        ([run, hot], {"window": 50.0}, "different temperatures: 300.0 and 350"),
        ([run, smaller], {"window": 50.0}, "different atoms: H2O and HO"),
        ([slow], {"window": 50.0}, "every 10 fs show vibrations up to 1668 cm"),
        ([run], {"window": 0.0}, "a window of 0 fs"),
        ([run], {"skip": 1.0}, "no velocities after 1 ps"),
        ([timeless], {}, "time step of"),
    ):
        with pytest.raises(ConfigError, match=said):
            spectrum(runs, **options)  # type: ignore[arg-type]
    # what was 1000 cm^-1 every femtosecond is 100 every ten
    assert spectrum([slow], window=600, highest=1600).peaks["all"] == pytest.approx([100], abs=1)
