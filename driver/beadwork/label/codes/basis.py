"""Basis sets and pseudopotentials of PySCF: which belong together, for which elements.

A basis that was made for a pseudopotential has no functions for the core. With the bare nucleus a calculation converges
all the same, to meaningless energies and forces (130 eV/Å for HI in def2-SVP). So for each element we compute how much
of the binding energy of its lowest s level the basis lacks, for a single electron in the field of the nucleus or the
pseudopotential. Over the sets of PySCF 2.14 and the elements up to radon, all-electron sets for the Schrödinger
equation lack 7 % at most (STO-3G of hydrogen), and sets of pseudopotentials 18 % and more (except for the larger ones
of hydrogen, which has no core). With a pseudopotential its own set lacks 37 % at most (CRENBS of copper), and one that
was made for a larger core lacks half or more.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from beadwork.errors import ConfigError, LabelError

#: fraction of the lowest level's binding energy that a basis may lack, with the bare nucleus and with a pseudopotential
MAX_LACKING = (0.12, 0.45)
#: exponents of a practically complete set of s functions, Bohr⁻²: each twice the last
_EVEN = [2.0**power for power in range(-7, 22)]


@dataclass(frozen=True)
class Basis:
    """A basis, and the pseudopotential that goes with it.

    name, ecp, pseudo: as PySCF calls them; ecp is of the kind of quantum chemistry, pseudo one of Goedecker, Teter and
    Hutter (`gth-pbe`). own: without either an element has the potential that PySCF holds under the basis's own name, as
    def2, LANL2DZ and Stuttgart's sets have one for heavy elements. Raises ConfigError for names that PySCF does not
    know.
    """

    name: str
    ecp: str | None = None
    pseudo: str | None = None
    own: bool = True

    def __post_init__(self) -> None:
        if self.ecp and self.pseudo:
            raise ConfigError(
                f"ecp {self.ecp!r} and pseudo {self.pseudo!r} are both set", "an atom takes one: leave one"
            )
        # as far as any set of PySCF goes: a name that is known for no element is no name
        elements = range(1, 104)
        for what, name, load in (
            ("basis", self.name, _functions),
            ("ecp", self.ecp, _ecp),
            ("pseudo", self.pseudo, _pseudo),
        ):
            if name is not None and not any(load(name, number) for number in elements):
                raise ConfigError(f"PySCF has no {what} {name!r}", "check its name")

    @property
    def potential(self) -> str:
        """For instance `ecp ccecp`; empty where it is the basis's own."""
        # PySCF reads `def2-SVP` and `def2svp` as one name
        plain = import_module("pyscf.gto.basis")._format_basis_name
        if self.ecp and plain(self.ecp) != plain(self.name):
            return f"ecp {self.ecp}"
        return f"pseudo {self.pseudo}" if self.pseudo else ""

    def functions(self, number: int) -> int:
        """How many there are of an element, spherical ones. Raises LabelError where the basis has none of it."""
        # each shell: [l, (exponent, coefficient, ...), ...] or [l, kappa, (...), ...]
        return sum((2 * shell[0] + 1) * (len(shell[-1]) - 1) for shell in self._shells(number))

    def molecule(self, numbers: Iterable[int]) -> dict[str, Any]:
        """What `gto.M` is to be told of basis and potentials for atoms of these elements.

        Raises LabelError where the basis does not know an element, or lacks its core.
        """
        told: dict[str, Any] = {"basis": {}, "ecp": {}, "pseudo": {}}
        for number in sorted(set(numbers)):
            symbol = chemical_symbols[number]
            told["basis"][symbol] = self._shells(number)
            kind, potential = self._potential(number)
            if kind is not None:
                told[kind][symbol] = potential
            lacks = lacking(self, number)
            # such a field converges all the same, to nonsense
            if lacks > MAX_LACKING[kind is not None]:
                given = f"{kind} {potential}" if kind else "all electrons"
                raise LabelError(
                    f"the basis {self.name} has no functions for the core of {symbol} ({given}): energy and forces "
                    "would be meaningless",
                    'give the pseudopotential that it was made for (ecp = "ccecp" for ccECP\'s '
                    'sets, pseudo = "gth-pbe" for GTH\'s, ...), or an all-electron basis',
                )
        return told

    def auxiliary(self, mol: Any, correlated: bool) -> dict[str, str]:
        """The sets by element in which densities of `mol`, a molecule in this basis, are fitted.

        They are those that PySCF holds for the basis: of Coulomb and exchange (JK) for every mean field, or of MP2 for
        correlation energies. Raises LabelError where it has none: what it would make of its own depends on which
        packages are beside it.
        """
        named = mol.copy(deep=False)
        named.verbose = 0
        named.basis = {mol.atom_pure_symbol(atom): self.name for atom in range(mol.natm)}  # `mol` has the functions
        sets = import_module("pyscf.df").make_auxbasis(named, mp2fit=correlated)
        if lacking := [symbol for symbol in named.basis if not isinstance(sets[symbol], str)]:
            raise LabelError(
                f"PySCF has no auxiliary basis of {', '.join(lacking)} for {self.name}: leave out DF-, or take a basis "
                "that has one (cc-pVXZ, aug-cc-pVXZ, def2)"
            )
        return dict(sets)

    def _shells(self, number: int) -> list[Any]:
        shells = _functions(self.name, number)
        if not shells:
            raise LabelError(f"the basis {self.name} has no {chemical_symbols[number]}", "choose one that has")
        return shells

    def _potential(self, number: int) -> tuple[str | None, str | None]:
        """Whether an element has an ecp, a pseudo or none, and its name."""
        if self.pseudo:
            return ("pseudo", self.pseudo) if _pseudo(self.pseudo, number) else (None, None)
        ecp = self.ecp or (self.name if self.own else None)
        return ("ecp", ecp) if ecp and _ecp(ecp, number) else (None, None)


def check_stored(code: str, said: str, numbers: Iterable[int], where: str) -> None:
    """Refuse a stored label that was computed without the pseudopotential that its basis was made for.

    code, said: the label's code and input. The first labels of `pyscf` were all made with bare nuclei, do not name an
    `ecp` in their input, and have the same method as those made since. Raises LabelError; asks nothing where PySCF is
    not installed.
    """
    if code != "PySCF" or find_spec("pyscf") is None:
        return
    try:
        told = json.loads(said)
    except ValueError:  # a label of another program, whose input has another form
        return
    if not isinstance(told, dict) or "ecp" in told or not isinstance(told.get("basis"), str):
        return
    # own=False: as those first labels were computed
    bare = Basis(told["basis"], own=False)
    for number in sorted({int(number) for number in numbers}):
        if lacking(bare, number) > MAX_LACKING[0]:
            raise LabelError(
                f"{where}: its label was computed with the bare nucleus of {chemical_symbols[number]}, for whose core "
                f"the basis {bare.name} has no functions, and is unphysical: label the frames of this queue again in a "
                "new one (beadwork queue export, beadwork queue add)"
            )


@cache
def lacking(basis: Basis, number: int) -> float:
    """Fraction of the binding energy of an element's lowest s level, for one electron, that the basis lacks."""
    shells = [shell for shell in _functions(basis.name, number) if shell[0] == 0]
    if not shells:
        return 1.0
    kind, potential = basis._potential(number)
    whole = _lowest(number, [[0, [exponent, 1.0]] for exponent in _EVEN], kind, potential)
    # both energies are negative, and the smaller set lies higher: 0 lacks nothing
    return 1.0 - _lowest(number, shells, kind, potential) / whole


def _lowest(number: int, shells: list[Any], kind: str | None, potential: str | None) -> float:
    """Energy of the lowest level in Hartree."""
    symbol = chemical_symbols[number]
    given = {} if kind is None else {kind: {symbol: potential}}
    atom = import_module("pyscf.gto").M(atom=symbol, basis={symbol: shells}, spin=None, verbose=0, **given)
    overlap = atom.intor("int1e_ovlp")
    # canonical orthogonalisation: an even-tempered set this wide is nearly linearly dependent
    sizes, ways = np.linalg.eigh(overlap)
    kept = sizes > 1e-9
    ways = ways[:, kept] / np.sqrt(sizes[kept])
    return float(np.linalg.eigvalsh(ways.T @ import_module("pyscf.scf.hf").get_hcore(atom) @ ways)[0])


def _functions(name: str, number: int) -> list[Any]:
    return _loaded("load", name, number)


def _ecp(name: str, number: int) -> list[Any]:
    return _loaded("load_ecp", name, number)


def _pseudo(name: str, number: int) -> list[Any]:
    return _loaded("load_pseudo", name, number)


@cache
def _loaded(load: str, name: str, number: int) -> list[Any]:
    """What PySCF has of an element under this name; empty where it has nothing."""
    library = import_module("pyscf.gto.basis")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PySCF suggests another package with more sets
            return list(getattr(library, load)(name, chemical_symbols[number]) or ())
    except (library.BasisNotFoundError, KeyError, AttributeError, TypeError, RuntimeError, OSError):
        return []  # PySCF's errors for a name or an element that it does not have
