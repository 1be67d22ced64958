"""The level of theory of a label by PySCF: one, or energies of several levels and bases, added up.

`DF-MP2/aug-cc-pVTZ + [CCSD(T) - MP2]/cc-pVDZ` is a cheap level in a large basis and the rest of the correlation in a
small one. `MP2/aug-cc-pV[TQ]Z` is MP2 extrapolated from two bases of cardinal numbers X < Y (D 2, T 3, Q 4). Its
correlation energy falls off with X^-3 (Helgaker, Klopper, Koch and Noga, J. Chem. Phys. 106, 9639, 1997; with two
points Halkier et al., Chem. Phys. Lett. 286, 243, 1998):

    E_corr = (Y^3 E_corr(Y) - X^3 E_corr(X)) / (Y^3 - X^3)

and its Hartree-Fock energy is that of the larger basis, or by the user's choice that of an exponential, E(X) = E + A
exp(-1.63 X) (Halkier et al., Chem. Phys. Lett. 302, 437, 1999). All of this is linear: whatever is written down becomes
levels of one basis each, with a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from beadwork.errors import ConfigError
from beadwork.label.codes.basis import Basis

#: methods that are not density functionals
CORRELATED = ("MP2", "CCSD", "CCSD(T)")
#: in front of a theory whose two-electron integrals are fitted
FITTED = "DF-"
CARDINAL = {"D": 2, "T": 3, "Q": 4, "5": 5, "6": 6}
#: of Hartree-Fock's exponential
ALPHA = 1.63
HOW = (
    'write a scheme as theory = "DF-MP2/aug-cc-pVTZ + [CCSD(T) - MP2]/cc-pVDZ", with blanks round + and - and a basis '
    "behind each level; MP2/cc-pV[TQ]Z is extrapolated from two"
)


@dataclass(frozen=True)
class Level:
    """One theory in one basis. fitted: with density fitting, of the mean field and of the correlation."""

    theory: str
    basis: Basis
    fitted: bool = False

    @property
    def kind(self) -> str:
        """The theory, or `DFT` for all functionals."""
        return self.theory if self.theory in (*CORRELATED, "HF") else "DFT"

    @property
    def field(self) -> Level:
        """The level of the mean field: itself, or Hartree-Fock where the theory adds a correlation to it."""
        return replace(self, theory="HF") if self.kind in CORRELATED else self

    @property
    def title(self) -> str:
        """For instance `DF-MP2/aug-cc-pVTZ`."""
        return f"{FITTED * self.fitted}{self.theory}/{self.basis.name}"


@dataclass(frozen=True)
class Scheme:
    """What the energy is the sum of. title: as methods name it. extrapolated: whether a part of it is."""

    title: str
    weights: Mapping[Level, float]
    extrapolated: bool

    @property
    def kinds(self) -> set[str]:
        """Those of all levels."""
        return {level.kind for level in self.weights}


def read(
    theory: str, basis: str | None, ecp: str | None, pseudo: str | None, dispersion: str | None, exponential: bool
) -> Scheme:
    """Understand `theory`, with its basis beside it or in it.

    exponential: extrapolate Hartree-Fock too. Raises ConfigError for what cannot be read, is no total energy or cannot
    be extrapolated, and for a basis that PySCF does not know.
    """
    if basis is not None and "/" in theory:
        raise ConfigError(f"theory {theory!r} names its basis: leave out basis = {basis!r}")
    if basis is None and "/" not in theory:
        raise ConfigError(f"theory {theory!r} has no basis: set basis, or {HOW}")
    # a single level with its basis beside it: the form of all labels from before there were schemes
    terms = [(1, theory, basis)] if basis is not None else _terms(theory)
    # differences add corrections; one total energy must remain, or the label is on no scale
    if (total := sum(sign for sign, _, _ in terms)) != 1:
        raise ConfigError(
            f"theory {theory!r} is the sum of {total} total energies, and must be of one: a correction is the "
            "difference of two levels"
        )
    weights: dict[Level, float] = {}
    title = ""
    for sign, name, where in terms:
        for level, weight in _levels(name, where, ecp, pseudo, exponential):
            # levels that occur twice are computed once
            weights[level] = weights.get(level, 0.0) + sign * weight
        title += f" {'-' if sign < 0 else '+'} " if title else ""
        title += name + (f"-{dispersion}" if dispersion and level.kind == "DFT" else "") + f"/{where}"
    extrapolated = any(_pair(where) for _, _, where in terms)
    if exponential and not extrapolated:
        raise ConfigError(f"theory {theory!r} extrapolates nothing: leave out hf_exponential, or {HOW}")
    # a level that cancels is not computed
    return Scheme(title, {level: weight for level, weight in weights.items() if abs(weight) > 1e-12}, extrapolated)


def _terms(theory: str) -> list[tuple[int, str, str]]:
    """Sign, theory and basis of each level, in the order in which they are written."""
    #: `+ [A - B]/basis` is `+ A/basis - B/basis`
    plain = re.sub(
        r"(^|[+-])(\s*)\[([^][]+?)\s+-\s+([^][]+?)\]/(\S+)",
        lambda m: f"{m[1]}{m[2]}{m[3]}/{m[5]} {'+' if m[1] == '-' else '-'} {m[4]}/{m[5]}",
        theory.strip(),
    )
    # blanks round + and -: names of functionals and bases hold both signs themselves
    first, *others = re.split(r"\s+([+-])\s+", plain)
    written = [("+", first), *zip(others[::2], others[1::2], strict=True)]
    terms = []
    for sign, term in written:
        match = re.fullmatch(r"([^][\s/]+)/([^\s/]+)", term)
        if match is None:
            raise ConfigError(f"cannot read {term!r} in theory {theory!r}: {HOW}")
        terms.append((-1 if sign == "-" else 1, match[1], match[2]))
    return terms


def _levels(name: str, where: str, ecp: str | None, pseudo: str | None, exponential: bool) -> list[tuple[Level, float]]:
    """The levels of one basis that a term stands for, and their weights. Raises ConfigError."""

    def level(basis: str, theory: str = name.removeprefix(FITTED)) -> Level:
        return Level(theory, Basis(basis, ecp, pseudo), name.startswith(FITTED))

    if (pair := _pair(where)) is None:
        return [(level(where), 1.0)]
    (small, x), (large, y) = pair
    # the formula divides by Y³ - X³, and the title would name two schemes for one
    if x >= y:
        raise ConfigError(f"{where} names two bases, the smaller one first: {large} is not larger than {small}")
    if level(large).kind == "DFT":
        raise ConfigError(
            f"{name}/{where} is a functional, whose energy does not fall off with X^-3: give one basis for it"
        )
    # from E(X) = E + A exp(-1.63 X) at two X: E = (E(Y) - rest E(X)) / (1 - rest)
    rest = math.exp(-ALPHA * (y - x))
    field = (-rest / (1 - rest), 1 / (1 - rest)) if exponential else (0.0, 1.0)
    weights = [(level(basis, "HF"), weight) for basis, weight in zip((small, large), field, strict=True)]
    if level(large).kind == "HF":
        return weights
    for basis, share in ((small, -(x**3) / (y**3 - x**3)), (large, y**3 / (y**3 - x**3))):
        # the correlation energy is the total minus Hartree-Fock in the same basis
        weights += [(level(basis), share), (level(basis, "HF"), -share)]
    return weights


def _pair(where: str) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """The two bases of `cc-pV[TQ]Z` and their cardinal numbers; None for one basis."""
    match = re.fullmatch(r"([^][]*)\[([DTQ56])([DTQ56])\]([^][]*)", where)
    if match is None:
        return None
    before, small, large, after = match.groups()
    return (f"{before}{small}{after}", CARDINAL[small]), (f"{before}{large}{after}", CARDINAL[large])
