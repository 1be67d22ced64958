"""Dipole and polarizability of PySCF's mean fields, from the density and from its linear response to a field.

    mu = Σ_A Z_A R_A - tr(D r)        alpha_xy = -tr(r_x ∂D/∂E_y)

(Helgaker, Jørgensen and Olsen, Molecular Electronic-Structure Theory, ch. 10; the response solves the coupled-perturbed
Hartree-Fock or Kohn-Sham equations). Both are the derivatives of the energy in a static field: no finite steps.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from beadwork.errors import LabelError
from beadwork.frame import FloatArray

#: of the response's residual, relative to the field's matrix elements, at which it counts as solved
RESIDUAL = 1e-6
#: of PySCF's solver, each from what the one before left over
ROUNDS = 5


def dipole(field: Any) -> FloatArray:
    """(3,) e Bohr, about the origin of the coordinates, which matters for ions alone. field: a converged mean field."""
    density = np.asarray(field.make_rdm1())
    if density.ndim == 3:
        density = density.sum(axis=0)
    mol = field.mol
    found: FloatArray = mol.atom_charges() @ mol.atom_coords() - np.einsum("xpq,qp->x", _places(mol), density)
    return found


def polarizability(field: Any) -> FloatArray:
    """(3, 3) e² Bohr²/Hartree, of a converged mean field. Raises LabelError where the response does not converge."""
    coefficients, occupations, energies = (
        [one] if np.ndim(field.mo_occ) == 1 else list(one) for one in (field.mo_coeff, field.mo_occ, field.mo_energy)
    )
    electrons = 2.0 if len(coefficients) == 1 else 1.0  # in an orbital
    empty = [c[:, n == 0] for c, n in zip(coefficients, occupations, strict=True)]
    filled = [c[:, n > 0] for c, n in zip(coefficients, occupations, strict=True)]
    gaps = [e[n == 0][:, None] - e[n > 0] for e, n in zip(energies, occupations, strict=True)]
    places = _places(field.mol)
    pairs = list(zip(empty, filled, strict=True))
    field_elements = _flat([np.einsum("xpq,pa,qi->xai", places, v, o) for v, o in pairs])
    gap = _flat([one[None] for one in gaps])
    response = field.gen_response(hermi=1)
    cuts = np.cumsum([one.size for one in gaps])[:-1]

    def induced(amplitudes: FloatArray) -> FloatArray:
        """What the moved electrons do to each other, divided by the gaps."""
        parts = [
            # by the number of rows: NumPy cannot tell it where a spin has no electron to move, as in H2+
            part.reshape(len(amplitudes), *one.shape)
            for part, one in zip(np.split(amplitudes, cuts, axis=1), gaps, strict=True)
        ]
        moved = [np.einsum("pa,xai,qi->xpq", v, electrons * x, o) for (v, o), x in zip(pairs, parts, strict=True)]
        density = np.array([one + one.transpose(0, 2, 1) for one in moved])
        potential = np.asarray(response(density[0] if len(pairs) == 1 else density))
        potential = potential.reshape(len(pairs), -1, *potential.shape[-2:])
        found = [np.einsum("xpq,pa,qi->xai", one, v, o) for one, (v, o) in zip(potential, pairs, strict=True)]
        return _flat(found) / gap

    left = first = -field_elements / gap
    alone = tuple(import_module(f"pyscf.scf.{kind}").HF1e for kind in ("uhf", "rohf"))
    if isinstance(field, alone):  # its orbitals are those of the nuclei alone, the empty ones too: nobody answers
        return -2.0 * electrons * field_elements @ first.T
    lib, amplitudes, size = import_module("pyscf.lib"), np.zeros_like(first), max(1.0, np.abs(first).max(initial=0.0))
    for _ in range(ROUNDS):
        amplitudes = amplitudes + lib.krylov(induced, left, verbose=0).reshape(first.shape)
        # what rounding and PySCF's threshold left over is solved for again
        left = first - amplitudes - induced(amplitudes)
        if (far := np.abs(left).max(initial=0.0)) <= RESIDUAL * size:
            break
    else:
        raise LabelError(
            f"the response to an electric field did not converge (residual {far:.1e})",
            "the field may not be a minimum: look at the structure, or label it with polarizability = false",
        )
    found: FloatArray = -2.0 * electrons * field_elements @ amplitudes.T
    return (found + found.T) / 2


def _places(mol: Any) -> FloatArray:
    """(3, n, n) Bohr: matrix elements of the electron's place."""
    with mol.with_common_orig((0.0, 0.0, 0.0)):
        return np.asarray(mol.intor_symmetric("int1e_r", comp=3))


def _flat(parts: list[FloatArray]) -> FloatArray:
    """(k, all) of the parts of each spin."""
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
