"""Dipoles and polarizabilities of PySCF's mean fields, against finite fields and PySCF's own dipole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.linalg import eigh

from beadwork.errors import ConfigError
from beadwork.frame import Frame
from beadwork.label.constants import BOHR, HARTREE
from beadwork.label.label import Label, as_json

pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")

from pyscf import dft, gto, scf

from beadwork.label.codes.pyscf_labeller import PySCF
from beadwork.label.codes.pyscf_response import dipole, polarizability

BENT = Frame(
    np.array([8, 1, 1]),
    np.array([[0.02, 0.01, 0.11], [0.05, 0.79, -0.45], [0, -0.71, -0.53]]),
    np.zeros((3, 3)),
    (False,) * 3,
)
#: of the second differences, in Hartree / (e Bohr)
FIELD = 2e-3


def converged(kind: str, charge: int = 0, field: Sequence[float] = (0, 0, 0)) -> Any:
    """A mean field of the bent molecule in 6-31G, in an electric field (a.u.), whose energy has that of the nuclei."""
    atoms = [(int(z), tuple(at)) for z, at in zip(BENT.numbers, BENT.positions / BOHR, strict=True)]
    mol = gto.M(atom=atoms, unit="Bohr", basis="6-31g", charge=charge, spin=abs(charge), verbose=0, parse_arg=False)
    made = {"HF": lambda: (scf.UHF if charge else scf.RHF)(mol), "DF-HF": lambda: scf.RHF(mol).density_fit()}
    mean = made.get(kind, lambda: (dft.UKS if charge else dft.RKS)(mol, xc=kind))()
    if kind not in made:
        mean.grids.level = 1
    core = mean.get_hcore() + np.einsum("x,xpq->pq", field, mol.intor_symmetric("int1e_r", comp=3))
    mean.get_hcore = lambda *_: core
    mean.conv_tol = 1e-12
    mean.kernel()
    assert mean.converged
    return mean


def along(kind: str, charge: int, way: np.ndarray) -> tuple[float, np.ndarray]:
    """The dipole along a direction, and the polarizability's part along it, by central differences of fourth order."""
    means = {n: converged(kind, charge, n * FIELD * way) for n in (-2, -1, 1, 2)}
    nuclei = means[1].mol.atom_charges() @ means[1].mol.atom_coords()
    energies = {n: mean.e_tot - n * FIELD * float(nuclei @ way) for n, mean in means.items()}
    dipoles = {n: dipole(mean) for n, mean in means.items()}

    def slope(of: dict[int, Any]) -> Any:
        return (8 * (of[1] - of[-1]) - (of[2] - of[-2])) / (12 * FIELD)

    return -slope(energies), slope(dipoles)


@pytest.mark.parametrize(
    ("kind", "charge"),
    [
        ("HF", 0),
        pytest.param("HF", 1, marks=pytest.mark.slow),
        pytest.param("DF-HF", 0, marks=pytest.mark.slow),
        pytest.param("PBE0", 0, marks=pytest.mark.slow),
        pytest.param("PBE", 1, marks=pytest.mark.slow),
        pytest.param("r2scan", 0, marks=pytest.mark.slow),
        pytest.param("wb97x", 0, marks=pytest.mark.slow),
    ],
)
def test_both_are_derivatives_of_the_energy_in_a_field(kind: str, charge: int) -> None:
    """Along a skew direction: the dipole is the slope of the energy in a field (with the nuclei in it, so that that of
    an ion is about the origin), the polarizability that of the dipole; for every kind of mean field."""
    way = np.array([0.6, -0.48, 0.64])
    slope, change = along(kind, charge, way)
    mean = converged(kind, charge)
    assert dipole(mean) @ way == pytest.approx(slope, abs=2e-6)
    alpha = polarizability(mean)
    np.testing.assert_allclose(alpha @ way, change, atol=2e-5)
    assert np.linalg.eigvalsh(alpha)[0] > 0.5


def test_one_electron() -> None:
    """H2+, in which one spin has no electron, for which NumPy had an error. By Hartree-Fock it feels the nuclei alone,
    so its polarizability is the sum over the states of these; by a functional it feels itself too, and the dipole in a
    field tells it. Without an empty orbital it is 0."""
    atoms = [("H", (0, 0, 0)), ("H", (0, 0.3, 1.0))]
    mol = gto.M(atom=atoms, basis="6-31g", charge=1, spin=1, verbose=0, parse_arg=False)
    bare, reach = scf.hf.get_hcore(mol), mol.intor_symmetric("int1e_r", comp=3)
    energies, states = eigh(bare, mol.intor_symmetric("int1e_ovlp"))
    places = np.einsum("xpq,pn,q->xn", reach, states[:, 1:], states[:, 0])
    exact = 2 * (places / (energies[1:] - energies[0])) @ places.T
    assert exact[2, 2] > 1
    np.testing.assert_allclose(polarizability(scf.UHF(mol).run()), exact, atol=1e-8)
    minimal = gto.M(atom=atoms[:1], basis="sto-3g", spin=1, verbose=0, parse_arg=False)
    assert not polarizability(scf.UHF(minimal).run()).any()
    means = []
    for size in (-FIELD, 0, FIELD):
        means.append(dft.UKS(mol, xc="LDA"))
        means[-1].grids.level, means[-1].conv_tol = 0, 1e-12
        means[-1].get_hcore = lambda *_, core=bare + size * reach[2]: core
        means[-1].run()
    change = (dipole(means[2]) - dipole(means[0])) / (2 * FIELD)
    np.testing.assert_allclose(polarizability(means[1])[2], change, atol=1e-3)


def test_labels_have_them_in_their_units() -> None:
    """HF/6-31G of water at its experimental geometry: the dipole that PySCF's own dip_moment prints in Debye; kept by
    the label's file with its hash, named in its input, and absent where they were not asked for."""
    at = [[0, 0, 0], [0, 0.7572, 0.5865], [0, -0.7572, 0.5865]]
    water = Frame(np.array([8, 1, 1]), np.array(at), np.zeros((3, 3)), (False,) * 3)
    labeller = PySCF("HF", "6-31g", forces=False, dipole=True, polarizability=True)
    label = labeller.label(water, 0, 0)
    mol = gto.M(atom=[("O", at[0]), ("H", at[1]), ("H", at[2])], basis="6-31g", verbose=0, parse_arg=False)
    mean = scf.RHF(mol).run(conv_tol=1e-10)
    debye = mean.dip_moment(verbose=0)
    assert label.dipole is not None
    assert label.polarizability is not None
    np.testing.assert_allclose(label.dipole / 0.2081943, debye, atol=1e-5)
    # e Å²/V in e² Bohr²/Hartree
    np.testing.assert_allclose(label.polarizability * HARTREE / BOHR**2, polarizability(mean), atol=1e-6)
    stored = json.loads(as_json(label.to_dict()))
    again = Label.from_dict(stored)
    assert again.hash == label.hash
    np.testing.assert_array_equal(again.polarizability, label.polarizability)
    assert json.loads(label.input)["dipole"] is True
    bare = PySCF("HF", "6-31g", forces=False).label(water, 0, 0)
    assert not {"dipole", "polarizability"} & (set(bare.to_dict()) | set(json.loads(bare.input)))


@pytest.mark.slow
def test_water_is_as_the_literature_has_it() -> None:
    """HF of water at its experimental geometry in aug-cc-pVTZ: dipole and mean polarizability are near Hartree-Fock's
    limit (1.98 Debye, 8.53 a.u.; Maroulis, J. Chem. Phys. 94, 1182, 1991) to 3 %."""
    at = np.array([[0, 0, 0], [0, 0.7572, 0.5865], [0, -0.7572, 0.5865]])
    water = Frame(np.array([8, 1, 1]), at, np.zeros((3, 3)), (False,) * 3)
    label = PySCF("HF", "aug-cc-pvtz", forces=False, dipole=True, polarizability=True).label(water, 0, 0)
    assert label.dipole is not None
    assert label.polarizability is not None
    assert np.linalg.norm(label.dipole) / 0.2081943 == pytest.approx(1.98, rel=0.03)
    assert np.trace(label.polarizability) / 3 * HARTREE / BOHR**2 == pytest.approx(8.53, rel=0.03)


def test_of_correlated_levels_they_are_refused() -> None:
    """Before the first frame: MP2's density is not that of Hartree-Fock."""
    with pytest.raises(ConfigError, match=r"MP2 has no dipole and no polarizability here.*HF or a functional"):
        PySCF("MP2", "6-31g", forces=False, dipole=True)
