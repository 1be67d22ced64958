"""What every engine must do, toys included. Held against nothing but the engine's own energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from beadwork.frame import Frame
from beadwork.potential.engine import Engine
from beadwork.potential.graph import build

#: eV/Å and eV: central differences with STEP, in float64
STEP = 2e-4


def check_contract(engine: Engine, frames: Sequence[Frame], tolerance: float = 2e-6, invariant: bool = True) -> None:
    """Fail where the engine breaks the contract of `beadwork.potential.engine.Engine` on these frames.

    tolerance: of forces and virials against finite differences. invariant: the energy does not change when a structure
    is moved as a whole (false for a particle tied to a site).
    """

    def run(some: Sequence[Frame]):
        return engine.evaluate(build(some, engine.cutoff))

    def energy(frame: Frame) -> float:
        return float(run([frame]).energies[0])

    whole = run(frames)
    atoms = sum(len(f.numbers) for f in frames)
    assert isinstance(engine.name, str)
    assert engine.name
    assert whole.energies.shape == (len(frames),)
    assert whole.forces.shape == (atoms, 3)
    assert whole.virials.shape == (len(frames), 3, 3)
    for array in (whole.energies, whole.forces, whole.virials):
        assert array.dtype == np.float64
        assert np.isfinite(array).all()
    assert np.array_equal(whole.virials, whole.virials.transpose(0, 2, 1))

    # no input is changed, and the same question gets the same answer
    graph = build(frames, engine.cutoff + 0.5)
    names = ("numbers", "positions", "cells", "ptr", "center", "neighbor", "vectors", "lengths", "degree", "system")
    before = {name: getattr(graph, name).copy() for name in names}
    again = engine.evaluate(graph)
    for name in names:
        assert np.array_equal(before[name], getattr(graph, name)), f"the engine changed {name}"
    # nor do edges beyond the engine's own cutoff matter
    assert np.abs(again.energies - whole.energies).max() < 1e-10
    assert np.abs(again.forces - whole.forces).max() < 1e-10

    rng = np.random.default_rng(1)
    start = 0
    for k, frame in enumerate(frames):
        n = len(frame.numbers)
        forces = whole.forces[start : start + n]
        single = run([frame])
        assert np.abs(single.energies - whole.energies[k]).max() < 1e-10, "batch and single differ in energy"
        assert np.abs(single.forces - forces).max() < 1e-10, "batch and single differ in forces"
        assert np.abs(single.virials[0] - whole.virials[k]).max() < 1e-10, "batch and single differ in virial"

        order = rng.permutation(n)
        permuted = run([replace(frame, numbers=frame.numbers[order], positions=frame.positions[order])])
        if invariant:
            assert abs(permuted.energies[0] - whole.energies[k]) < 1e-9
            assert np.abs(permuted.forces - forces[order]).max() < 1e-9
            moved = run([replace(frame, positions=frame.positions + np.array([0.3, -1.1, 7.7]))])
            assert abs(moved.energies[0] - whole.energies[k]) < 1e-9
            assert np.abs(moved.forces - forces).max() < 1e-9
            assert np.abs(forces.sum(axis=0)).max() < 1e-9

        for atom, axis in {(int(rng.integers(n)), a) for a in range(3)}:
            shift = np.zeros((n, 3))
            shift[atom, axis] = STEP
            up, down = (energy(replace(frame, positions=frame.positions + s * shift)) for s in (1, -1))
            assert abs(-(up - down) / (2 * STEP) - forces[atom, axis]) < tolerance, f"force on atom {atom}"
        for a, b in ((0, 0), (1, 2), (2, 2)):
            strain = np.zeros((3, 3))
            strain[a, b] = strain[b, a] = STEP
            up, down = (
                energy(replace(frame, positions=frame.positions @ deform, cell=frame.cell @ deform))
                for deform in (np.eye(3) + strain, np.eye(3) - strain)
            )
            both = whole.virials[k, a, b] * (1 if a == b else 2)
            size = max(1.0, float(np.abs(frame.positions).max()))
            assert abs(-(up - down) / (2 * STEP) - both) < tolerance * size * n, f"virial {a}{b}"
        start += n
