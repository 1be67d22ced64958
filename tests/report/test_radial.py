"""Distances counted and members reweighted, against counting by hand, against theory, against i-PI's own tool."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from beadwork.frame import Frame
from beadwork.report.radial import deviations, matched, offsets, radial, reweight

TRICLINIC = np.array([[9.0, 0.0, 0.0], [2.0, 8.5, 0.0], [-1.0, 1.5, 10.0]])


def gas(seed: int, count: int = 30, cell: np.ndarray = TRICLINIC) -> Frame:
    """Atoms anywhere, cells away from home."""
    rng = np.random.default_rng(seed)
    return Frame(np.array([8, 1, 1] * count), rng.uniform(-3, 3, (3 * count, 3)) @ cell, cell)


def by_hand(frame: Frame, first: int, second: int, edges: np.ndarray) -> np.ndarray:
    """g(r) by every image of every pair."""
    images = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    scaled = frame.positions @ np.linalg.inv(frame.cell)
    counts = np.zeros(len(edges) - 1)
    here, there = np.flatnonzero(frame.numbers == first), np.flatnonzero(frame.numbers == second)
    for i in here:
        for j in there[there != i]:
            difference = scaled[j] - scaled[i]
            difference -= np.round(difference)
            counts += np.histogram(np.linalg.norm((difference + images) @ frame.cell, axis=1), edges)[0]
    others = len(there) - (first == second)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    return counts / (len(here) * others * shells / abs(np.linalg.det(frame.cell)))


def test_counted_by_hand() -> None:
    """In a skewed cell with atoms far outside it, beads averaged, a frame a step."""
    frames = [(step, bead, gas(2 * step + bead)) for bead in range(2) for step in (3, 7)]
    found = radial(frames)
    assert found is not None
    assert found.steps.tolist() == [3, 7]
    assert list(found.pairs) == ["OO", "OH", "HH"]
    width = found.distances[1] - found.distances[0]
    edges = np.concatenate([found.distances - width / 2, found.distances[-1:] + width / 2])
    assert edges[-1] <= np.min(1 / np.linalg.norm(np.linalg.inv(TRICLINIC), axis=0)) / 2 + 1e-9
    for name, (first, second) in {"OO": (8, 8), "OH": (8, 1), "HH": (1, 1)}.items():
        for row, step in enumerate(found.steps):
            wanted = np.mean([by_hand(gas(2 * step + bead), first, second, edges) for bead in range(2)], axis=0)
            assert np.allclose(found.pairs[name][row], wanted, atol=1e-9)


def test_an_ideal_gas_is_one_everywhere() -> None:
    """The norm: pairs of like atoms leave each atom itself out."""
    found = radial((step, 0, gas(step, count=60)) for step in range(80))
    assert found is not None
    for values in found.pairs.values():
        assert abs(values.mean(axis=0)[40:].mean() - 1) < 0.02


def test_a_step_counts_with_all_its_beads_or_not_at_all() -> None:
    """A run that was killed has a last step of some beads, and one that went back to a RESTART has steps that it gave
    up (9): they do not count, of any bead, as of the members' energies, or a row would be of two trajectories."""
    frames = [(0, 0, gas(3)), (9, 0, gas(4)), (0, 0, gas(0)), (5, 0, gas(2)), (0, 1, gas(5)), (9, 1, gas(6))]
    frames.append((0, 1, gas(1)))
    found, whole = radial(frames), radial([frames[2], frames[6]])
    assert found is not None
    assert whole is not None
    assert found.steps.tolist() == [0]
    assert np.array_equal(found.pairs["OH"], whole.pairs["OH"])
    assert radial([]) is None
    assert radial([(0, 0, Frame(gas(0).numbers, gas(0).positions, np.zeros((3, 3)), (False,) * 3))]) is None


def test_reweighting_is_that_of_ipis_own_tool(tmp_path: Path) -> None:
    """Mean, error and every member's average, from the same two files."""
    rng = np.random.default_rng(5)
    frames, members, bins, thermal = 60, 4, 7, 9.5e-4
    potentials = -550.0 + 0.01 * rng.normal(size=(frames, 1)) + 5e-4 * rng.normal(size=(frames, members))
    observable = rng.normal(1.0, 0.2, (frames, bins)) + 300 * (potentials[:, :1] - potentials[:, 1:2])
    np.savetxt(tmp_path / "pot", potentials, fmt="%.17e")
    np.savetxt(tmp_path / "obs", observable, fmt="%.17e")
    tool = Path(sys.executable).with_name("i-pi-committee-reweight")
    command = [sys.executable, tool, tmp_path / "pot", tmp_path / "obs", "--kt", repr(thermal)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = np.loadtxt(said.splitlines())
    ours = reweight(potentials, observable, thermal)
    assert theirs.shape == (bins, 2 + members)
    assert np.allclose(theirs[:, 2:], ours, rtol=0, atol=2e-8)
    assert np.allclose(theirs[:, 0], ours.mean(axis=1), rtol=0, atol=2e-8)
    assert np.allclose(theirs[:, 1], ours.std(axis=1), rtol=0, atol=2e-8)
    assert ours.std(axis=1).max() > 0.05  # the members do differ here


def test_a_constant_offset_is_no_uncertainty(tmp_path: Path) -> None:
    """Members that are eV apart at all times give the averages, and the error, that they give without; so they do in
    i-PI's own tool, which reads them offsets and all. The offsets themselves are found again, for the record."""
    rng = np.random.default_rng(7)
    frames, members, thermal = 400, 4, 9.5e-4
    potentials = -550.0 + 2e-4 * rng.normal(size=(frames, members))
    apart = np.array([0.03, -0.01, 0.0, -0.02])
    observable = rng.normal(1.0, 0.2, (frames, 3)) + 300 * (potentials[:, :1] - potentials[:, 1:2])
    plain, shifted = (reweight(energies, observable, thermal) for energies in (potentials, potentials + apart))
    assert plain.std(axis=1).min() > 1e-3
    assert np.allclose(shifted, plain, rtol=0, atol=1e-9)
    assert np.allclose(offsets(potentials + apart), apart, rtol=0, atol=1e-4)
    for name, energies in (("pot", potentials + apart), ("obs", observable)):
        np.savetxt(tmp_path / name, energies, fmt="%.17e")
    tool = Path(sys.executable).with_name("i-pi-committee-reweight")
    command = [sys.executable, tool, tmp_path / "pot", tmp_path / "obs", "--kt", repr(thermal)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert np.allclose(np.loadtxt(said.splitlines())[:, 2:], plain, rtol=0, atol=1e-7)


def test_a_stiffer_member_has_smaller_swings() -> None:
    """Theory: of harmonic wells of stiffness 1 ± 0.05 about a mean of 1, <x²> = kT (1 ∓ 0.05) to first order."""
    thermal = 0.7
    x = np.random.default_rng(1).normal(0, np.sqrt(thermal), 400_000)
    potentials = 0.5 * np.outer(x**2, [0.95, 1.05])
    found = reweight(potentials, x[:, None] ** 2, thermal)[0]
    assert np.allclose(found, thermal * np.array([1.05, 0.95]), rtol=0.01)
    assert np.allclose(deviations(potentials, thermal).sum(axis=1), 0, atol=1e-12)


def test_steps_are_matched_by_their_number() -> None:
    """Positions and energies may be written at different strides; fewer than two common steps give no error bar."""
    found = radial((step, 0, gas(step)) for step in (0, 5, 10, 15))
    assert found is not None
    rows, energies = matched(found, {0: np.array([1.0, 2.0]), 10: np.array([3.0, 4.0]), 12: np.zeros(2)}) or (
        None,
        None,
    )
    assert rows is not None
    assert rows.tolist() == [0, 2]
    assert energies is not None
    assert energies.tolist() == [[1, 2], [3, 4]]
    assert matched(found, {0: np.zeros(2), 3: np.zeros(2)}) is None
