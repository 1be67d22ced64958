"""Dispersion by formula: the library's own calculators' answers, slopes of the energy, and its place in the sum."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.config import ServeConfig
from beadwork.errors import ConfigError, ModelError
from beadwork.frame import Frame
from beadwork.potential.additions import open_additions
from beadwork.potential.analytic import Harmonic
from beadwork.potential.bundle import MODEL, Card
from beadwork.potential.dispersion import KINDS
from beadwork.potential.graph import build
from beadwork.potential.potential import Potential

pytest.importorskip("dftd3")
pytest.importorskip("dftd4")

ION = Frame(
    np.array([8, 1, 1, 1]),
    np.array([[0, 0, 0.1], [0.94, 0, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.81, -0.25]]),
    np.zeros((3, 3)),
    (False,) * 3,
    charge=1,
)
CRYSTAL = Frame(
    np.array([18, 10, 6]),
    np.array([[0.1, 0.0, 0.2], [2.6, 2.5, 0.4], [2.3, 0.2, 2.9]]),
    np.array([[5.2, 0.1, 0.0], [-0.3, 5.1, 0.2], [0.4, -0.2, 5.3]]),
    charge=0,
)
FRAMES = (ION, CRYSTAL)


def made(kind, method):
    """The engine of one addition."""
    return open_additions({kind: method}, [1, 8])[0]


def own(kind, frame):
    """The library's own ASE calculator, on these atoms."""
    from dftd3.ase import DFTD3
    from dftd4.ase import DFTD4

    atoms = frame.to_atoms()
    if kind == "d4":
        atoms.set_initial_charges([float(frame.charge), *[0.0] * (len(atoms) - 1)])
    atoms.calc = DFTD4(method="PBE") if kind == "d4" else DFTD3(method="PBE", damping=kind)
    return atoms


@pytest.mark.parametrize("kind", ["d3bj", "d3zero", "d4"])
def test_the_librarys_own_calculator_answers_the_same(kind):
    """An ion and a skew crystal in one graph: energies, forces and stress, but for ASE's older Hartree and Bohr."""
    answer = made(kind, "pbe").evaluate(graph := build(FRAMES, 0.0))
    for s, frame in enumerate(FRAMES):
        atoms = own(kind, frame)
        forces = answer.forces[graph.ptr[s] : graph.ptr[s + 1]]
        assert answer.energies[s] == pytest.approx(atoms.get_potential_energy(), rel=5e-7)
        assert np.abs(forces - atoms.get_forces()).max() < 1e-8
    virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
    assert np.abs(answer.virials[1] - virial).max() < 1e-6 * np.abs(virial).max()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "d4"])
def test_slopes_of_the_energy(kind):
    """Forces and virial by finite differences, three-body terms included where they are asked for.

    The virial of a crystal lacks what pairs that cross the library's cutoff add to a strain: some 1e-5 of it.
    """
    engine, h = made(kind, "revPBE"), 1e-3
    shear = np.zeros((3, 3))
    shear[0, 1] = shear[1, 0] = h / 2
    frames = FRAMES if "atm" not in kind else (ION,)
    for frame in frames:
        step = np.zeros_like(frame.positions)
        step[1, 2] = h
        moved = [replace(frame, positions=frame.positions + x) for x in (step, -step)]
        strained = [
            replace(frame, positions=frame.positions @ (np.eye(3) + x), cell=frame.cell @ (np.eye(3) + x))
            for x in (shear, -shear)
        ]
        found = engine.evaluate(build([frame, *moved, *strained], 0.0))
        slopes = -np.array([found.energies[1] - found.energies[2], found.energies[3] - found.energies[4]]) / (2 * h)
        assert found.forces[1, 2] == pytest.approx(slopes[0], abs=1e-8)
        assert found.virials[0, 0, 1] == pytest.approx(slopes[1], abs=1e-8 if frame is ION else 1e-4)


def test_three_body_terms_and_charges_count():
    """`-atm` adds the three-body terms, D4 sees the charge of the system, and each is another model by its hash."""
    graph = build([CRYSTAL], 0.0)
    pairs, all_terms = (made(kind, "PBE") for kind in ("d3bj", "d3bj-atm"))
    more = all_terms.evaluate(graph).energies[0] - pairs.evaluate(graph).energies[0]
    assert 1e-4 < abs(more) < 0.2 * abs(pairs.evaluate(graph).energies[0])
    ions = build([replace(ION, charge=charge) for charge in (1, -1)], 0.0)
    found = made("d4", "PBE").evaluate(ions).energies
    assert abs(found[0] - found[1]) > 1e-3
    with pytest.raises(ModelError, match=r"d4=PBE .* wants the total charge of the system, and none is given.*charge"):
        made("d4", "PBE").evaluate(build([replace(ION, charge=None)], 0.0))
    named = {made(kind, method).hash for kind in ("d3bj", "d3zero") for method in ("PBE", "revPBE")}
    assert len(named | {all_terms.hash}) == 5
    assert made("d3bj", "pbe").hash == pairs.hash


def test_one_and_two_periodic_directions():
    """D4 of a slab is refused: dftd4 gives it the charges, and so the energy, of the bulk of its cell. D3 of a slab and
    of a wire is that of a wide cell (its cutoff, 60 Bohr, ends in the vacuum), also where the cell has no third vector
    and where atoms lie beyond one, into which s-dftd3 would fold them."""
    slab = replace(CRYSTAL, cell=CRYSTAL.cell * [[1], [1], [0]], pbc=(True, True, False))
    wire = replace(CRYSTAL, cell=CRYSTAL.cell * [[0], [1], [0]], pbc=(False, True, False))
    wide = [
        replace(one, cell=one.cell + 80 * ~np.array(one.pbc)[:, None] * np.eye(3), pbc=(True,) * 3)
        for one in (slab, wire)
    ]
    pairs = made("d3bj", "PBE")
    found, wanted = (pairs.evaluate(build(frames, 0.0)) for frames in ([slab, wire], wide))
    assert found.energies == pytest.approx(wanted.energies, abs=1e-9)
    assert found.forces == pytest.approx(wanted.forces, abs=1e-8)
    short = replace(slab, cell=slab.cell + np.diag([0, 0, 2.0]))
    assert pairs.evaluate(build([short], 0.0)).energies[0] == pytest.approx(found.energies[0], abs=1e-9)
    said = r"structure 1 of 2 is periodic in 2 directions, and the charges of d4=PBE \(dftd4 .*\) are those of three or"
    with pytest.raises(ModelError, match=said):
        made("d4", "PBE").evaluate(build([CRYSTAL, slab], 0.0))


def potential(**more):
    """A baseline with D3 and two members, of toys with cards."""
    cards = [
        Card(Path(f"m/{k}"), f"{k}", (1, 8), 1.0, "float64", None, {MODEL: f"{k}"}) for k in ("base", "one", "two")
    ]
    return Potential(Harmonic(1.0), [Harmonic(0.1), Harmonic(0.3)], cards=cards, **more)


def test_the_sum_has_three_parts():
    """Baseline + D3 + Δ; D3 is served with the baseline and not with Δ, in a new committee too, and names the whole."""
    addition = made("d3bj", "revPBE")
    alone, plain, whole = addition.evaluate(build(FRAMES, 0.0)), potential(), potential(additions=[addition])
    before, now = (one.evaluate(FRAMES) for one in (plain, whole))
    for part in ("energies", "forces", "virials"):
        assert getattr(now, part) == pytest.approx(getattr(before, part) + getattr(alone, part), abs=1e-12)
    assert now.baseline.energies == pytest.approx(before.baseline.energies + alone.energies, abs=1e-12)
    assert now.spread.force == pytest.approx(before.spread.force)
    assert whole.without_delta().evaluate(FRAMES).energies == pytest.approx(now.baseline.energies)
    assert whole.without_baseline().evaluate(FRAMES).energies == pytest.approx(before.delta.energies)
    fresh = Potential(None, [Harmonic(0.2), Harmonic(0.3)], cards=plain.member_cards)
    assert whole.with_committee(fresh).evaluate(FRAMES).baseline.energies == pytest.approx(now.baseline.energies)
    assert now.models == (before.models[0], addition.hash, *before.models[1:])
    names = {part.identity for part in (whole, whole.without_delta(), whole.without_baseline())}
    assert len(names) == 1
    assert names != {plain.identity}
    assert addition.name in now.seconds


def test_what_cannot_be_added_is_a_sentence(monkeypatch):
    """Unknown kinds and functionals, no baseline, and a library that is missing."""
    with pytest.raises(ConfigError, match=r"add names 'd5'; it wants one of d3bj, .* as d3bj=PBE"):
        made("d5", "PBE")
    with pytest.raises(ModelError, match=r"dftd3 has no parameters of 'PEB' for d3bj .*name a functional as it does"):
        made("d3bj", "PEB")
    with pytest.raises(ModelError, match=r"d3bj=PBE \(dftd3 .* is added to a baseline, and there is none"):
        Potential(None, [Harmonic(1.0)], additions=[made("d3bj", "PBE")])
    with pytest.raises(ConfigError, match="add names what is added to the baseline, and there is none"):
        ServeConfig(simulation="i.xml", delta=["m"], add={"d3bj": "PBE"}).check()
    with pytest.raises(ConfigError, match="d5"):
        ServeConfig(simulation="i.xml", baseline="m", add={"d5": "PBE"}).check()
    monkeypatch.setitem(sys.modules, "dftd3.interface", None)
    with pytest.raises(ModelError, match=r"d3bj needs dftd3, which cannot be imported .*pip install .?dftd3"):
        made("d3bj", "PBE")
