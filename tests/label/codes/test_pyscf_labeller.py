"""Labels by PySCF."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import Frame
from beadwork.label.constants import BOHR, HARTREE

pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")

from beadwork.label.codes import basis
from beadwork.label.codes.basis import Basis
from beadwork.label.codes.pyscf_labeller import PySCF


def molecule(symbols: list[int], positions: list[list[float]]) -> Frame:
    """A molecule without a cell, Å."""
    return Frame(np.array(symbols), np.array(positions), np.zeros((3, 3)), (False, False, False))


WATER = molecule([8, 1, 1], [[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])
BENT = molecule([8, 1, 1], [[0.02, 0.01, 0.11], [0.05, 0.79, -0.45], [0, -0.71, -0.53]])
HYDROGEN = molecule([1], [[0, 0, 0]])
IODIDE = molecule([1, 53], [[0, 0, 0], [0, 0, 1.609]])
HYDRONIUM = molecule([8, 1, 1, 1], [[0, 0, 0], [0, 0, 0.97], [0.94, 0, -0.25], [-0.47, 0.82, -0.25]])


@pytest.mark.parametrize(
    ("frame", "charge", "spin", "settings", "method", "hartree"),
    [
        (WATER, 0, 0, {"theory": "HF"}, "HF/cc-pVDZ", -76.02677205339),
        (WATER, 0, 0, {"theory": "PBE"}, "PBE/cc-pVDZ, grid 3", -76.33344221028),
        (
            WATER,
            0,
            0,
            {"theory": "PBE", "dispersion": "d3bj"},
            "PBE-d3bj/cc-pVDZ, grid 3",
            -76.33380167893,
        ),
        (WATER, 0, 0, {"theory": "MP2"}, "MP2/cc-pVDZ, all electrons", -76.23077561711),
        (WATER, 0, 0, {"theory": "MP2", "frozen_core": True}, "MP2/cc-pVDZ, frozen core", -76.22843803308),
        (WATER, 0, 0, {"theory": "CCSD"}, "CCSD/cc-pVDZ, all electrons", -76.24009948073),
        (WATER, 0, 0, {"theory": "CCSD(T)"}, "CCSD(T)/cc-pVDZ, all electrons", -76.24315818814),
        (
            WATER,
            0,
            0,
            {"theory": "CCSD(T)", "frozen_core": True},
            "CCSD(T)/cc-pVDZ, frozen core",
            -76.24104120383,
        ),
        (WATER, 1, 1, {"theory": "CCSD"}, "CCSD/cc-pVDZ, all electrons", -75.80156019667),
        (WATER, 1, 1, {"theory": "PBE"}, "PBE/cc-pVDZ, grid 3", -75.88167501668),
        (HYDROGEN, 0, 1, {"theory": "CCSD(T)"}, "CCSD(T)/cc-pVDZ, all electrons", -0.49927840342),
        (HYDRONIUM, 1, 0, {"theory": "HF"}, "HF/cc-pVDZ", -76.30970612341),
        (
            WATER,
            0,
            0,
            {"theory": "HF", "basis": "ccecp-cc-pvdz", "ecp": "ccecp"},
            "HF/ccecp-cc-pvdz, ecp ccecp",
            -16.93289447427,
        ),
        (
            WATER,
            0,
            0,
            {"theory": "PBE", "basis": "gth-dzvp", "pseudo": "gth-pbe"},
            "PBE/gth-dzvp, pseudo gth-pbe, grid 3",
            -17.20411859914,
        ),
    ],
)
def test_energies_are_pyscf_s_own(
    frame: Frame, charge: int, spin: int, settings: dict[str, Any], method: str, hartree: float
) -> None:
    """Charge, spin, core, dispersion, basis and potentials reach PySCF.

    The energies are those that a script of PySCF 2.14 alone printed.
    """
    if "dispersion" in settings:
        pytest.importorskip("pyscf.dispersion.dftd3", reason="pip install pyscf-dispersion")
    label = PySCF(**{"basis": "cc-pVDZ", "forces": False} | settings).label(frame, charge, spin)
    assert label.energy / HARTREE == pytest.approx(hartree, abs=2e-9)
    assert (label.method, label.charge, label.spin) == (method, charge, spin)
    assert label.forces is None


def test_other_tolerances_are_another_method() -> None:
    """Tolerances other than the defaults are named where the theory uses them, defaults are not: stored labels stay."""
    for theory, named in (("HF", ""), ("PBE", ", grid 3"), ("MP2", ", all electrons"), ("CCSD(T)", ", all electrons")):
        usual = f"{theory}/6-31g{named}"
        assert PySCF(theory, "6-31g", scf_tol=1e-10, cc_tol=1e-9).method == usual
        assert PySCF(theory, "6-31g", scf_tol=1e-6).method == f"{usual}, scf_tol 1e-06"
        loose = ", cc_tol 1e-05" if theory == "CCSD(T)" else ""
        assert PySCF(theory, "6-31g", cc_tol=1e-5, threads=2, max_cycle=7).method == usual + loose


def test_hartree_and_bohr_are_those_of_codata_2018() -> None:
    """The Hartree and Bohr of CODATA 2018, as ASE has them too when it is asked for that year."""
    import ase.units

    year = ase.units.create_units("2018")
    assert pytest.approx(year["Hartree"], rel=1e-11) == HARTREE
    assert pytest.approx(year["Bohr"], rel=1e-11) == BOHR


@pytest.mark.parametrize(
    ("frame", "charge", "spin", "settings"),
    [
        (BENT, 0, 0, {"theory": "PBE", "grid": 1}),
        (BENT, 0, 0, {"theory": "PBE", "grid": 1, "dispersion": "d3bj"}),
        (BENT, 0, 0, {"theory": "MP2"}),
        (BENT, 0, 0, {"theory": "MP2", "frozen_core": True}),
        (BENT, 0, 0, {"theory": "CCSD"}),
        (BENT, 0, 0, {"theory": "CCSD", "frozen_core": True}),
        (BENT, 0, 0, {"theory": "CCSD(T)"}),
        (BENT, 0, 0, {"theory": "CCSD(T)", "frozen_core": True}),
        (BENT, 1, 1, {"theory": "PBE", "grid": 1}),
        (BENT, 1, 1, {"theory": "MP2"}),
        (BENT, 1, 1, {"theory": "CCSD"}),
        (BENT, 0, 0, {"theory": "PBE", "grid": 3, "basis": "gth-dzvp", "pseudo": "gth-pbe"}),
        (BENT, 0, 0, {"theory": "MP2", "basis": "ccecp-cc-pvdz", "ecp": "ccecp"}),
        pytest.param(
            *(BENT, 0, 0, {"theory": "CCSD(T)", "basis": "ccecp-cc-pvdz", "ecp": "ccecp"}), marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, int | dict) else "",
)
def test_forces_are_the_derivative_of_the_energy(
    frame: Frame, charge: int, spin: int, settings: dict[str, Any]
) -> None:
    """Central differences along a random direction, on a grid so coarse that its response matters."""
    if "dispersion" in settings:
        pytest.importorskip("pyscf.dispersion.dftd3", reason="pip install pyscf-dispersion")
    settings = {"basis": "6-31g", "scf_tol": 1e-12, "cc_tol": 1e-10} | settings
    way = np.random.default_rng(1).normal(size=frame.positions.shape)
    way /= np.linalg.norm(way)
    step = 2e-3
    low, high = (
        PySCF(forces=False, **settings)
        .label(Frame(frame.numbers, frame.positions + sign * step * way, frame.cell, frame.pbc), charge, spin)
        .energy
        for sign in (-1, 1)
    )
    forces = PySCF(**settings).label(frame, charge, spin).forces
    assert forces is not None
    assert (forces * way).sum() == pytest.approx((low - high) / (2 * step), abs=1e-4)
    assert np.abs(forces.sum(axis=0)).max() < 1e-4


def test_a_basis_has_the_pseudopotential_that_it_was_made_for() -> None:
    """HI in def2-SVP pulls with 0.4677 eV/Å, as PySCF has it with def2's potential; without it there were 130."""
    label = PySCF("PBE", "def2-svp").label(IODIDE, 0, 0)
    assert label.method == "PBE/def2-svp, grid 3"
    assert label.energy == pytest.approx(-8116.5816918, abs=1e-5)
    assert label.forces is not None
    assert np.abs(label.forces).max() == pytest.approx(0.4677423, abs=1e-5)


@pytest.mark.parametrize(
    ("frame", "settings", "said"),
    [
        (WATER, {"basis": "ccecp-cc-pvdz"}, r"the basis ccecp-cc-pvdz has no functions for the core of O \(all elec"),
        (WATER, {"basis": "gth-dzvp"}, "the basis gth-dzvp has no functions for the core of O"),
        (WATER, {"basis": "bfd-vdz"}, "no functions for the core of O"),
        (IODIDE, {"basis": "def2-mtzvpp"}, "no functions for the core of I"),
        (IODIDE, {"basis": "lanl2dz", "ecp": "def2-svp"}, r"no functions for the core of I \(ecp def2-svp\)"),
        (IODIDE, {"basis": "cc-pvdz"}, "the basis cc-pvdz has no I"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_basis_without_the_core_is_refused(frame: Frame, settings: dict[str, Any], said: str) -> None:
    """Before anything is computed: such a field converges, to -945 eV for water where -2069 are right."""
    labeller = PySCF("HF", **settings)
    for act in (labeller.check, labeller.label):
        with pytest.raises(LabelError, match=said):
            act(frame, 0, 0)


@pytest.mark.parametrize(
    ("name", "potential", "elements"),
    [
        ("sto-3g", {}, (1, 8, 36)),  # hydrogen's is the poorest of all
        ("6-31g**", {}, (1, 8, 17)),
        ("cc-pvdz", {}, (1, 3, 8)),
        ("def2-tzvp", {}, (1, 8, 36, 37, 54, 86)),
        ("lanl2dz", {}, (1, 8, 30, 53)),
        ("crenbs", {}, (29,)),  # the poorest with its own potential
        ("ccecp-cc-pvdz", {"ecp": "ccecp"}, (1, 3, 8, 53)),
        ("bfd-vdz", {"ecp": "bfd"}, (1, 8, 36)),
        ("gth-szv", {"pseudo": "gth-pbe"}, (1, 8)),
    ],
)
def test_a_basis_goes_with_its_own_potential(name: str, potential: dict[str, str], elements: tuple[int, ...]) -> None:
    """What is refused is what lacks a core: no all-electron set, nor one with the potential that it was made for."""
    made, bare = Basis(name, **potential), Basis(name, own=False)
    for number in elements:
        kind, _ = made._potential(number)
        assert made.molecule([number])["basis"]
        if kind is None:
            assert basis.lacking(made, number) < 0.07
        elif number > 2:
            with pytest.raises(LabelError, match="no functions for the core"):
                bare.molecule([number])


def test_what_pyscf_warns_of_is_in_the_label(capsys: pytest.CaptureFixture[str]) -> None:
    """Its warning is on stderr and in the label, and where there is none there is no word."""
    (said,) = PySCF("HF", "6-31g").label(molecule([8], [[0, 0, 0]]), 0, 2).extra["warnings"]
    assert said.startswith("WARN: HOMO -0.389")
    assert "HOMO" in capsys.readouterr().err
    assert "warnings" not in PySCF("HF", "6-31g").label(WATER, 0, 0).extra


def test_no_forces_of_one_electron() -> None:
    """A hydrogen atom has nothing to correlate: every method gives Hartree-Fock's energy, and no force."""
    label = PySCF("MP2", "6-31g").label(HYDROGEN, 0, 1)
    assert label.forces is not None
    assert np.abs(label.forces).max() < 1e-10


def test_what_does_not_converge_is_no_label() -> None:
    """An energy of an iteration that ended early is never taken for a label."""
    with pytest.raises(LabelError, match="did not converge in 2 cycles"):
        PySCF("HF", "6-31g", max_cycle=2).label(BENT, 0, 0)
    # the reference of H2 in a minimal basis is there at once, its coupled cluster is not
    pair = molecule([1, 1, 1, 1], [[0, 0, 0], [0, 0, 1], [0, 3, 0], [0, 3, 1]])
    with pytest.raises(LabelError, match="coupled cluster did not converge"):
        PySCF("CCSD", "sto-3g", scf_tol=1e-3, cc_tol=1e-14, max_cycle=4).label(pair, 0, 0)


def test_wrong_forces_are_refused() -> None:
    """PySCF 2.14 answers with forces of UCCSD(T) that central differences contradict; its energies are fine."""
    with pytest.raises(LabelError, match="not the derivative"):
        PySCF("CCSD(T)", "sto-3g").label(BENT, 1, 1)
    assert PySCF("CCSD(T)", "sto-3g", forces=False).label(BENT, 1, 1).forces is None


def test_what_pyscf_refuses_has_its_reason() -> None:
    """A spin that does not fit the electrons, a periodic frame: named, for the queue to store."""
    with pytest.raises(LabelError, match="spin"):
        PySCF("HF", "6-31g").label(WATER, 1, 0)
    box = Frame(WATER.numbers, WATER.positions, 10 * np.eye(3))
    with pytest.raises(LabelError, match="periodic"):
        PySCF("HF", "6-31g").label(box, 0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"theory": "CCCSD"},
        {"theory": "PBE", "basis": "cc-pVXZ"},
        {"theory": "MP2", "dispersion": "d3bj"},
        {"theory": "PBE", "dispersion": "d33"},
        {"theory": "PBE", "frozen_core": True},
        {"theory": "PBE", "grid": 11},
        {"theory": "PBE", "threads": 0},
        {"theory": ""},
        {"theory": "wb97x-d"},
        {"theory": "wb97x-d3"},
        {"theory": "PBE-D3"},
        {"theory": "B97-3c"},
        {"theory": "B2PLYP"},
        {"theory": "PBE", "ecp": "def2"},
        {"theory": "PBE", "pseudo": "gth-pbf"},
        {"theory": "PBE", "ecp": "ccecp", "pseudo": "gth-pbe"},
        {"theory": "MP2", "basis": "gth-dzvp", "pseudo": "gth-pbe"},
    ],
    ids=str,
)
def test_settings_are_refused_before_the_first_frame(settings: dict[str, Any]) -> None:
    """A typing error, and what PySCF does not have or has wrong forces of, ends at once, not once a frame."""
    with pytest.raises(ConfigError):
        PySCF(**{"basis": "6-31g"} | settings)


def test_estimate_grows_with_the_molecule() -> None:
    """The estimate counts the basis functions right: (H2O)4 in cc-pVDZ has 96, for which it is measured."""
    one = PySCF("MP2", "cc-pVDZ")
    four = Frame(np.tile(WATER.numbers, 4), np.tile(WATER.positions, (4, 1)), np.zeros((3, 3)), (False,) * 3)
    assert one.seconds(four) - 0.3 == pytest.approx(16.0)
    assert one.seconds(WATER) < 0.5
    for name, functions in (("cc-pVDZ", 24), ("cc-pVTZ", 58), ("6-31g", 13), ("aug-cc-pVTZ", 92)):
        assert sum(Basis(name).functions(int(number)) for number in WATER.numbers) == functions
