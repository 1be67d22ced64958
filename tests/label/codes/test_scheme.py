"""Schemes of several levels and bases, against PySCF called here by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import Frame
from beadwork.label.constants import BOHR, HARTREE

pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")

from pyscf import cc, df, gto, mp, scf

from beadwork.label.codes.pyscf_labeller import PySCF

#: Å
ATOMS = [("O", (0.02, 0.01, 0.11)), ("H", (0.05, 0.79, -0.45)), ("H", (0.0, -0.71, -0.53))]
BENT = Frame(np.array([8, 1, 1]), np.array([at for _, at in ATOMS]), np.zeros((3, 3)), (False, False, False))
FLUORIDE = Frame(np.array([9, 1]), np.array([[0, 0, 0], [0.3, 0.5, 0.8]]), np.zeros((3, 3)), (False, False, False))
ZUNDEL = "DF-MP2/aug-cc-pVDZ + [CCSD(T) - MP2]/6-31G"


def plain(theory: str, basis: str, *, charge: int = 0, spin: int = 0, frozen: int = 1, fit: bool = False) -> float:
    """Energy of BENT in Hartree, by PySCF's own classes, with its own auxiliary bases for their names."""
    atoms = [(symbol, tuple(np.array(at) / BOHR)) for symbol, at in ATOMS]
    mol = gto.M(atom=atoms, unit="Bohr", basis=basis, charge=charge, spin=spin, verbose=0)
    field = (scf.UHF if spin else scf.RHF)(mol)
    field = field.density_fit() if fit else field
    field.conv_tol = 1e-11
    energy = float(field.kernel())
    if theory == "HF":
        return energy
    solver = mp.MP2(field, frozen=frozen) if theory == "MP2" else cc.CCSD(field, frozen=frozen)
    if fit:
        solver.with_df = df.DF(mol, auxbasis=f"{basis}-ri")
    if theory != "MP2":
        solver.conv_tol = 1e-10
    solver.kernel()
    return energy + float(solver.e_corr) + (float(solver.ccsd_t()) if theory == "CCSD(T)" else 0.0)


def labelled(theory: str, charge: int = 0, spin: int = 0, **settings: Any) -> Any:
    """The label of BENT."""
    return PySCF(theory, **{"forces": False, "scf_tol": 1e-11, "cc_tol": 1e-10} | settings).label(BENT, charge, spin)


@pytest.mark.parametrize(("charge", "spin"), [(0, 0), (1, 1)])
def test_a_composite_is_the_sum_of_plain_pyscf_s_energies(charge: int, spin: int) -> None:
    """Each part, mean fields too, is what PySCF gives by itself for closed and open shells, and the label their sum."""
    label = labelled(ZUNDEL, charge, spin, frozen_core=True)
    known = {
        "DF-HF/aug-cc-pVDZ": plain("HF", "aug-cc-pvdz", charge=charge, spin=spin, fit=True),
        "DF-MP2/aug-cc-pVDZ": plain("MP2", "aug-cc-pvdz", charge=charge, spin=spin, fit=True),
        "HF/6-31G": plain("HF", "6-31g", charge=charge, spin=spin),
        "CCSD(T)/6-31G": plain("CCSD(T)", "6-31g", charge=charge, spin=spin),
        "MP2/6-31G": plain("MP2", "6-31g", charge=charge, spin=spin),
    }
    assert label.extra["parts"] == {name: pytest.approx(HARTREE * e, abs=1e-8) for name, e in known.items()}
    total = known["DF-MP2/aug-cc-pVDZ"] + known["CCSD(T)/6-31G"] - known["MP2/6-31G"]
    assert label.energy == pytest.approx(HARTREE * total, abs=1e-8)
    assert label.method == ("DF-MP2/aug-cc-pVDZ + CCSD(T)/6-31G - MP2/6-31G, frozen core, scf_tol 1e-11, cc_tol 1e-10")
    assert ("s2" in label.extra) == bool(spin)
    assert label.forces is None


def test_the_brackets_of_a_scheme_are_its_differences() -> None:
    """Both ways to write a scheme are one method, and one with another part, core or basis is another."""
    usual = PySCF(ZUNDEL, forces=False).method
    for same in (
        "DF-MP2/aug-cc-pVDZ + CCSD(T)/6-31G - MP2/6-31G",
        "  DF-MP2/aug-cc-pVDZ  +  [CCSD(T)  -  MP2]/6-31G ",
        "DF-MP2/aug-cc-pVDZ - [MP2 - CCSD(T)]/6-31G",
    ):
        scheme = PySCF(same, forces=False)
        assert sorted(scheme.method.split(", ")[0].split()) == sorted(usual.split(", ")[0].split())
        assert {level.title: weight for level, weight in scheme._scheme.weights.items()} == {
            "DF-MP2/aug-cc-pVDZ": 1,
            "CCSD(T)/6-31G": 1,
            "MP2/6-31G": -1,
        }
    others = [PySCF(ZUNDEL, forces=False, frozen_core=True), PySCF(ZUNDEL.removeprefix("DF-"), forces=False)]
    others += [PySCF(ZUNDEL.replace(*swap), forces=False) for swap in (("(T)", ""), ("6-31G", "6-311G"), ("aug-", ""))]
    pairs = [PySCF("MP2/cc-pV[DT]Z", forces=False, hf_exponential=exponential) for exponential in (False, True)]
    assert len({usual, *(other.method for other in others + pairs), PySCF("MP2", "cc-pVTZ").method}) == 9


def test_one_level_is_one_method_however_it_is_written() -> None:
    """A basis in the theory is that of `basis`: labels from before schemes were there stay comparable."""
    for theory, basis, settings in (
        ("CCSD(T)", "cc-pVDZ", {"frozen_core": True}),
        ("PBE", "def2-SVP", {}),
        ("HF", "ccecp-cc-pvdz", {"ecp": "ccecp"}),
    ):
        assert PySCF(f"{theory}/{basis}", **settings).method == PySCF(theory, basis, **settings).method


def test_extrapolation_is_helgaker_s() -> None:
    """Two points by hand: 8 and 27 for D and T, Hartree-Fock of the larger basis or from exp(-1.63 X)."""
    small, large = (plain("HF", f"cc-pv{x}z") for x in "dt")
    below, above = (plain("MP2", f"cc-pv{x}z") - hf for x, hf in (("d", small), ("t", large)))
    correlation = (27 * above - 8 * below) / 19
    exponential = (large - small * math.exp(-1.63)) / (1 - math.exp(-1.63))
    label = labelled("MP2/cc-pV[DT]Z", frozen_core=True)
    assert label.energy == pytest.approx(HARTREE * (large + correlation), abs=1e-8)
    assert label.method.startswith("MP2/cc-pV[DT]Z, frozen core, X^-3, HF of the larger basis")
    assert set(label.extra["parts"]) == {"HF/cc-pVDZ", "HF/cc-pVTZ", "MP2/cc-pVDZ", "MP2/cc-pVTZ"}
    label = labelled("MP2/cc-pV[DT]Z", frozen_core=True, hf_exponential=True)
    assert label.energy == pytest.approx(HARTREE * (exponential + correlation), abs=1e-8)
    assert label.method.startswith("MP2/cc-pV[DT]Z, frozen core, X^-3, HF exp(-1.63 X)")
    # whose correlation alone is extrapolated, written as quantum chemists do
    split = PySCF("HF/cc-pVTZ + [MP2 - HF]/cc-pV[DT]Z", frozen_core=True)._scheme.weights
    whole = PySCF("MP2/cc-pV[DT]Z", frozen_core=True)._scheme.weights
    assert split == {level: pytest.approx(weight) for level, weight in whole.items()}


@pytest.mark.parametrize(
    ("frame", "charge", "spin", "theory"),
    [
        (FLUORIDE, 0, 0, "MP2/cc-pV[DT]Z + [CCSD(T) - MP2]/6-31G"),
        (BENT, 1, 1, "MP2/6-31G + [CCSD - MP2]/STO-3G"),
        (BENT, 0, 0, "DF-PBE/6-31G"),
        (BENT, 1, 1, "DF-PBE0/6-31G + [HF - DF-HF]/STO-3G"),
    ],
    ids=["extrapolated", "open", "fitted", "fitted open"],
)
def test_forces_of_schemes_are_the_derivative_of_the_energy(frame: Frame, charge: int, spin: int, theory: str) -> None:
    """Central differences along a random direction; density fitting is in the forces as it is in the energy."""
    settings: dict[str, Any] = {"hf_exponential": True} if "[DT]" in theory else {}
    settings |= {"scf_tol": 1e-12, "cc_tol": 1e-10, "grid": 1}
    way = np.random.default_rng(1).normal(size=frame.positions.shape)
    way /= np.linalg.norm(way)
    step = 2e-3
    low, high = (
        PySCF(theory, forces=False, **settings)
        .label(Frame(frame.numbers, frame.positions + sign * step * way, frame.cell, frame.pbc), charge, spin)
        .energy
        for sign in (-1, 1)
    )
    forces = PySCF(theory, **settings).label(frame, charge, spin).forces
    assert forces is not None
    assert (forces * way).sum() == pytest.approx((low - high) / (2 * step), abs=1e-4)


@pytest.mark.parametrize(
    ("theory", "settings", "said"),
    [
        ("MP2", {}, "theory 'MP2' has no basis: set basis, or write a scheme as"),
        ("MP2/cc-pVDZ", {"basis": "cc-pVDZ"}, "names its basis: leave out basis"),
        (ZUNDEL, {"forces": True}, "PySCF has no forces of DF-MP2/aug-cc-pVDZ: set forces = false, or leave out DF-"),
        ("MP2/cc-pVTZ + CCSD(T)/cc-pVDZ", {}, "the sum of 2 total energies, and must be of one"),
        ("MP2/cc-pVTZ - MP2/cc-pVDZ", {}, "the sum of 0 total energies"),
        ("MP2/cc-pVTZ+CCSD(T)/cc-pVDZ", {}, r"cannot read 'MP2/cc-pVTZ\+CCSD\(T\)/cc-pVDZ' .* with blanks round"),
        ("MP2/cc-pVTZ + [CCSD(T)-MP2]/cc-pVDZ", {}, r"cannot read '\[CCSD\(T\)-MP2\]/cc-pVDZ'"),
        ("MP2/cc-pVTZ +", {}, "cannot read"),
        ("MP2/cc-pV[TD]Z", {}, "cc-pVDZ is not larger than cc-pVTZ"),
        ("MP2/cc-pV[TX]Z", {}, r"PySCF has no basis 'cc-pV\[TX\]Z'"),
        ("MP2/cc-pV[56]Z + [CCSD - MP2]/cc-pVXZ", {}, "PySCF has no basis"),
        ("PBE/cc-pV[DT]Z", {}, "a functional, whose energy does not fall off with X"),
        ("MP2/cc-pVTZ", {"hf_exponential": True}, "extrapolates nothing: leave out hf_exponential"),
        ("RI-MP2/cc-pVTZ", {}, "PySCF cannot compute 'RI-MP2'"),
        ("MP2/cc-pVTZ + [CCSDT - MP2]/cc-pVDZ", {}, "PySCF cannot compute 'CCSDT'"),
        (ZUNDEL, {"dispersion": "d3bj"}, "takes no dispersion correction"),
        ("HF/cc-pVTZ + [PBE - HF]/cc-pVDZ", {"frozen_core": True}, "has no core to freeze"),
    ],
)
def test_schemes_that_mean_nothing_are_refused(theory: str, settings: dict[str, Any], said: str) -> None:
    """Before the first frame, with the remedy."""
    with pytest.raises(ConfigError, match=said):
        PySCF(theory, **{"forces": False} | settings)


def test_without_an_auxiliary_basis_there_is_no_fitting() -> None:
    """PySCF would make one of its own, or take one from another package where it finds that: two labels of one name."""
    labeller = PySCF("DF-HF/ccecp-cc-pvdz", ecp="ccecp")
    for act in (labeller.check, labeller.label):
        with pytest.raises(LabelError, match="no auxiliary basis of O, H for ccecp-cc-pvdz: leave out DF-"):
            act(BENT, 0, 0)


def test_the_time_of_a_scheme_is_that_of_its_parts() -> None:
    """The large basis counts once, with the cost of density fitting, and the small one for each of its levels."""
    alone = [PySCF(part, forces=False).seconds(BENT) for part in ("DF-MP2/aug-cc-pVDZ", "CCSD(T)/6-31G", "MP2/6-31G")]
    assert PySCF(ZUNDEL, forces=False).seconds(BENT) - 0.3 == pytest.approx(sum(alone) - 0.9)
