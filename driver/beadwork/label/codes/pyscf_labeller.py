"""Labels by PySCF: density functionals, Hartree-Fock, MP2, CCSD, CCSD(T) and sums of them, of molecules and clusters.

Closed shells are computed restricted, all others unrestricted. Gradients are those that PySCF has analytically; of a
density functional they hold the response of the grid, without which they are not the derivative of the energy (1e-3
eV/Å on a coarse grid); of CCSD(T) they are there for closed shells alone, of correlation energies with density fitting
not at all. Dipoles and polarizabilities are those of a mean field (`pyscf_response`). Energies are converted with
`constants`. What PySCF warns of is in the label (`warnings`), and on stderr.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

from ase.data import chemical_symbols

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import FloatArray, Frame
from beadwork.label.codes.basis import Basis
from beadwork.label.codes.pyscf_response import dipole, polarizability
from beadwork.label.codes.scheme import CORRELATED, FITTED, Level, Scheme, read
from beadwork.label.constants import BOHR, HARTREE
from beadwork.label.label import Label
from beadwork.packages import pip_install
from beadwork.settings import required, setting

#: CPU seconds of a label of (H2O)4 in cc-pVDZ (96 basis functions) without and with forces, and the power of the number
#: of basis functions with which they grow; measured from one to four molecules, of CCSD(T) to two
_COST = {"DFT": (10.0, 18.0, 2.2), "HF": (1.3, 4.7, 3.2), "MP2": (1.6, 16.0, 4.1)}
_COST |= {"CCSD": (50.0, 101.0, 4.5), "CCSD(T)": (150.0, 3500.0, 5.6)}
#: the same of density fitting, up to 232 basis functions; that of coupled cluster is no cheaper in PySCF
_COST |= {"DF-DFT": (10.0, 14.0, 1.5), "DF-HF": (0.6, 1.5, 2.0), "DF-MP2": (0.7, 0.7, 2.1)}
#: s, however small the molecule
_START = 0.3


@dataclass(frozen=True)
class PySCF:
    """A labeller that calls PySCF in this process. Raises ConfigError for what PySCF does not know."""

    theory: str = field(
        metadata=required(
            "`HF`, `MP2`, `CCSD`, `CCSD(T)`, or a functional as libxc calls it (`PBE`, `B3LYP`, `SCAN`); with density "
            "fitting `DF-MP2`; as a scheme `DF-MP2/aug-cc-pVTZ + [CCSD(T) - MP2]/cc-pVDZ`, `MP2/cc-pV[TQ]Z`"
        )
    )
    basis: str | None = setting(None, "as PySCF calls it", unset="the one that `theory` names")
    ecp: str | None = setting(
        None,
        "pseudopotential, as PySCF calls it (`ccecp`)",
        unset="those that a basis as def2 has under its own name",
    )
    pseudo: str | None = setting(None, "the same of Goedecker, Teter and Hutter (`gth-pbe`), in place of `ecp`")
    dispersion: str | None = setting(None, "`d3bj`, `d3zero` or `d4` on top of a functional (needs pyscf-dispersion)")
    frozen_core: bool = setting(False, "leave the inner shells out of the correlation")
    hf_exponential: bool = setting(
        False, "in a scheme with two bases: extrapolate Hartree-Fock too; it is that of the larger basis otherwise"
    )
    forces: bool = setting(True, "compute them")
    dipole: bool = setting(False, "compute it, of Hartree-Fock and functionals; of an ion about the positions' origin")
    polarizability: bool = setting(False, "compute it, of the same: the static one")
    scf_tol: float = setting(1e-10, "change of the energy at which the self-consistent field ends", "Hartree")
    cc_tol: float = setting(1e-9, "the same of coupled cluster", "Hartree")
    grid: int = setting(3, "PySCF's level, 0 to 9", "")
    max_cycle: int = setting(100, "of the self-consistent field", "cycles")
    threads: int = setting(1, "of a label", "cores")
    max_memory: int = setting(4000, "beyond which PySCF works on disk where it can", "MB")

    def __post_init__(self) -> None:
        _pyscf()
        # the scheme is read here, so that a slip in it ends before the first frame
        kinds = self._scheme.kinds
        correlated = sorted(kinds & set(CORRELATED))
        for theory in sorted({level.theory for level in self._scheme.weights if level.kind == "DFT"}):
            _functional(theory, self.dispersion, self.forces, self.polarizability)
        if self.dispersion is not None and "DFT" not in kinds:
            raise ConfigError(f"{self.theory} takes no dispersion correction", f"leave out {self.dispersion!r}")
        if self.frozen_core and not correlated:
            raise ConfigError(f"{self.theory} has no core to freeze: leave out frozen_core")
        if self.pseudo and correlated and self.forces:
            raise ConfigError(
                f"PySCF's forces of {correlated[0]} with the pseudo {self.pseudo} are not the derivative of its energy "
                "(0.09 eV/Å for H2O): set forces = false, or take an ecp"
            )
        if correlated and (self.dipole or self.polarizability):
            raise ConfigError(
                f"{correlated[0]} has no dipole and no polarizability here",
                "compute them with HF or a functional, in a LABELLER.toml of its own",
            )
        fitted = [level.title for level in self._scheme.weights if level.fitted and level.kind in CORRELATED]
        if fitted and self.forces:
            raise ConfigError(f"PySCF has no forces of {fitted[0]}: set forces = false, or leave out {FITTED}")
        if not (self.scf_tol > 0 and self.cc_tol > 0 and 0 <= self.grid <= 9 and min(self.threads, self.max_cycle) > 0):
            raise ConfigError(
                "tolerances, threads and max_cycle are positive, grid is 0 to 9; "
                f"got {self.scf_tol}, {self.cc_tol}, {self.threads}, {self.max_cycle} and {self.grid}",
            )

    @cached_property
    def _scheme(self) -> Scheme:
        return read(self.theory, self.basis, self.ecp, self.pseudo, self.dispersion, self.hf_exponential)

    @property
    def method(self) -> str:
        """For instance `PBE-d3bj/cc-pVDZ, grid 3` or `CCSD(T)/cc-pVTZ, frozen core, cc_tol 1e-07`."""
        scheme = self._scheme
        # on all that moves the energy, and nothing else: two labels of one method must be comparable
        parts = [scheme.title, *sorted({level.basis.potential for level in scheme.weights} - {""})]
        if "DFT" in scheme.kinds:
            parts.append(f"grid {self.grid}")
        if scheme.kinds & set(CORRELATED):
            parts.append("frozen core" if self.frozen_core else "all electrons")
        if scheme.extrapolated:
            parts.append(f"X^-3, HF {'exp(-1.63 X)' if self.hf_exponential else 'of the larger basis'}")
        used = ("scf_tol", "cc_tol") if any(kind.startswith("CC") for kind in scheme.kinds) else ("scf_tol",)
        # stored labels do not name the defaults: naming them now would make them another method
        parts += [f"{name} {getattr(self, name)}" for name in used if getattr(self, name) != getattr(PySCF, name)]
        return ", ".join(parts)

    def check(self, frame: Frame, charge: int, spin: int) -> None:
        """Refuse what cannot be computed. Raises LabelError."""
        if any(frame.pbc):
            raise LabelError(
                "PySCF computes molecules and clusters: cut one from the periodic frame (`cut` in the TOML)"
            )
        if "CCSD(T)" in self._scheme.kinds and self.forces and spin:
            raise LabelError(
                "PySCF's forces of CCSD(T) for open shells are not the derivative of its energy (7e-4 eV/Å for H2O+): "
                "label such structures with forces = false, or with CCSD"
            )
        for level in self._scheme.weights:
            mol = self._molecule(frame, charge, spin, level.basis)
            if level.fitted:
                # the mean field is fitted in one set, its correlation in another, and PySCF may lack either
                for correlated in {False, level.kind in CORRELATED}:
                    level.basis.auxiliary(mol, correlated)

    def label(self, frame: Frame, charge: int, spin: int) -> Label:
        """Compute one label. Raises LabelError for what does not converge, or what PySCF cannot do."""
        self.check(frame, charge, spin)
        start = time.perf_counter()
        lib = _pyscf("lib")
        try:
            # several labels at once would otherwise take each other's cores
            with lib.with_omp_threads(self.threads):
                energy, gradient, extra, response = self._compute(frame, charge, spin)
        except LabelError:
            raise
        except Exception as error:  # PySCF raises all kinds; each becomes the reason that the queue stores
            raise LabelError(
                f"PySCF could not label the frame: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        return Label(
            energy=energy * HARTREE,
            # a force is the negative gradient
            forces=None if gradient is None else -gradient * (HARTREE / BOHR),
            energy_error=0.0,
            forces_error=None,
            method=self.method,
            code="PySCF",
            version=str(_pyscf().__version__),
            charge=charge,
            spin=spin,
            input=self._input(frame, charge, spin),
            seconds=time.perf_counter() - start,
            extra=extra,
            **response,
        )

    def seconds(self, frame: Frame) -> float:
        """Rough: measured on (H2O)4, grown with a power of the basis functions and shared among the threads."""
        one_core = 0.0
        for level in self._scheme.weights:
            fitted = f"{FITTED}{level.kind}" if level.fitted else level.kind
            plain, with_forces, power = _COST.get(fitted, _COST[level.kind])
            functions = sum(level.basis.functions(int(number)) * n for number, n in Counter(frame.numbers).items())
            one_core += (with_forces if self.forces else plain) * (functions / 96) ** power
        return _START + float(one_core / self.threads**0.8)  # the power is a guess: threads never help in full

    def _molecule(self, frame: Frame, charge: int, spin: int, basis: Basis) -> Any:
        """Raises LabelError for elements that the basis has not, and a spin that the electrons cannot have."""
        symbols = (chemical_symbols[number] for number in frame.numbers)
        told = basis.molecule(int(number) for number in frame.numbers)
        mol = _pyscf("gto").Mole()
        # what PySCF warns of is collected here, for the label
        mol.stdout = io.StringIO()
        try:
            return mol.build(
                dump_input=False,
                # else PySCF reads the command line of this process as its own
                parse_arg=False,
                verbose=_pyscf("lib").logger.WARN,
                # in Bohr, so that PySCF's own Å is not used: its constants are of another year
                atom=[(symbol, tuple(at)) for symbol, at in zip(symbols, frame.positions / BOHR, strict=True)],
                unit="Bohr",
                charge=charge,
                spin=spin,
                max_memory=self.max_memory,
                **told,
            )
        except Exception as error:  # of all kinds too
            raise LabelError(
                f"PySCF cannot set up the frame: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error

    def _compute(
        self, frame: Frame, charge: int, spin: int
    ) -> tuple[float, FloatArray | None, dict[str, Any], dict[str, FloatArray]]:
        """Return the energy in Hartree, the gradient in Hartree/Bohr or None, what else is worth keeping, and dipole
        and polarizability as a label has them."""
        weights = self._scheme.weights
        fields: dict[Level, Any] = {}
        energies: dict[str, float] = {}  # of the mean fields too
        s2: dict[str, float] = {}  # <S²> of an unrestricted field: how far it is from a pure spin
        energy, gradient = 0.0, None
        response: dict[str, FloatArray] = {}
        for level, weight in weights.items():
            # MP2 and CCSD in one basis share their Hartree-Fock field
            if level.field not in fields:
                field = self._field(self._molecule(frame, charge, spin, level.basis), level.field)
                fields[level.field] = field
                energies[level.field.title] = float(field.e_tot)
                if spin:
                    s2[level.field.title] = float(field.spin_square()[0])
            one, slope = self._level(fields[level.field], level)
            energies[level.title] = one
            energy += weight * one
            if slope is not None:
                # the energy is linear in its levels, and so is its derivative
                gradient = weight * slope if gradient is None else gradient + weight * slope
            for name, value in self._response(fields[level.field]).items():
                response[name] = response.get(name, 0.0) + weight * value
        extra: dict[str, Any] = {}
        first, mean = next(iter(fields.items()))
        if len(weights) > 1:
            extra["parts"] = {name: value * HARTREE for name, value in energies.items()}
        elif first not in weights:
            extra["scf_energy"] = float(mean.e_tot) * HARTREE
        if spin:
            extra["s2"] = s2 if len(fields) > 1 else s2[first.title]
        lines = (line for field in fields.values() for line in field.mol.stdout.getvalue().splitlines())
        if said := [" ".join(line.split()) for line in lines if line.strip()]:
            extra["warnings"] = said
        return energy, gradient, extra, response

    def _response(self, field: Any) -> dict[str, FloatArray]:
        """Those of dipole (e Å) and polarizability (e Å²/V) that are wanted, of a converged mean field."""
        found = {}
        if self.dipole:
            found["dipole"] = dipole(field) * BOHR
        if self.polarizability:
            found["polarizability"] = polarizability(field) * (BOHR**2 / HARTREE)
        return found

    def _level(self, field: Any, level: Level) -> tuple[float, FloatArray | None]:
        """Return the energy of a level and its gradient, or None, on top of its mean field."""
        mol = field.mol
        if level.kind not in CORRELATED or mol.nelectron == 1:  # one electron has nothing to correlate with
            gradient = field.nuc_grad_method()
            if level.kind == "DFT":
                # without it the force is not the derivative of the energy: 1e-3 eV/Å on a coarse grid
                gradient.grid_response = True
            return float(field.e_tot), gradient.kernel() if self.forces else None
        frozen = _pyscf("data.elements").chemcore(mol) if self.frozen_core else None
        perturbed = level.kind == "MP2"
        solver = (_pyscf("mp").MP2 if perturbed else _pyscf("cc").CCSD)(field, frozen=frozen)
        if level.fitted:
            solver.with_df = _pyscf("df").DF(mol, auxbasis=level.basis.auxiliary(mol, True))
        if perturbed:
            # amplitudes take memory, and only the forces need them
            solver.kernel(with_t2=self.forces)
            return float(solver.e_tot), solver.nuc_grad_method().kernel() if self.forces else None
        return self._coupled_cluster(solver, level)

    def _field(self, mol: Any, level: Level) -> Any:
        """Return the converged mean field."""
        # restricted where all electrons are paired: half the work, and no spin contamination
        open_shell = mol.spin != 0
        if level.kind == "DFT":
            dft = _pyscf("dft")
            field = (dft.UKS if open_shell else dft.RKS)(mol, xc=level.theory)
            field.grids.level = self.grid
            field.disp = self.dispersion
        else:
            scf = _pyscf("scf")
            field = (scf.UHF if open_shell else scf.RHF)(mol)
        if level.fitted:
            field = field.density_fit(auxbasis=level.basis.auxiliary(mol, False))
        field.conv_tol = self.scf_tol
        field.max_cycle = self.max_cycle
        field.kernel()
        # PySCF returns the last energy all the same
        if not field.converged:
            raise LabelError(
                f"{level.title}: the self-consistent field did not converge in {self.max_cycle} cycles to "
                f"{self.scf_tol} Hartree",
                "check charge and spin of the structure, or raise max_cycle",
            )
        return field

    def _coupled_cluster(self, solver: Any, level: Level) -> tuple[float, FloatArray | None]:
        solver.conv_tol = self.cc_tol
        solver.max_cycle = self.max_cycle
        # made once: amplitudes, (T) and the Λ equations use the same
        integrals = solver.ao2mo()
        solver.kernel(eris=integrals)
        if not solver.converged:
            raise LabelError(
                f"{level.title}: coupled cluster did not converge in {self.max_cycle} cycles to {self.cc_tol} Hartree",
                "the structure may be far from closed shells: look at it, or raise max_cycle",
            )
        energy = float(solver.e_tot)
        if level.kind == "CCSD":
            if not self.forces:
                return energy, None
            # the Λ equations: coupled cluster is not variational, so its forces need the response of the amplitudes
            solver.solve_lambda(eris=integrals)
            _settled(solver.converged_lambda)
            return energy, solver.nuc_grad_method().kernel()
        energy += float(solver.ccsd_t(eris=integrals))
        if not self.forces:
            return energy, None
        # (T) has Λ equations of its own, which PySCF's solver object does not reach
        equations, gradients = _pyscf("cc.ccsd_t_lambda"), _pyscf("grad.ccsd_t")
        settled, l1, l2 = equations.kernel(
            solver, integrals, solver.t1, solver.t2, max_cycle=self.max_cycle, tol=self.cc_tol, verbose=0
        )
        _settled(settled)
        gradient = gradients.Gradients(solver).kernel(solver.t1, solver.t2, l1, l2, eris=integrals)
        return energy, gradient

    def _input(self, frame: Frame, charge: int, spin: int) -> str:
        return json.dumps(
            {
                "method": self.theory,
                "basis": self.basis,
                "ecp": self.ecp,
                "pseudo": self.pseudo,
                "dispersion": self.dispersion,
                "frozen_core": self.frozen_core,
                "hf_exponential": self.hf_exponential,
                "forces": self.forces,
                # named where they were computed: labels of before have no such entries
                **{name: True for name in ("dipole", "polarizability") if getattr(self, name)},
                "scf_tol": self.scf_tol,
                "cc_tol": self.cc_tol,
                "grid": self.grid,
                "charge": charge,
                "spin": spin,
                "numbers": frame.numbers.tolist(),
                "positions": frame.positions.tolist(),
            }
        )


def _settled(converged: bool) -> None:
    if not converged:
        raise LabelError("the Λ equations, which the forces need, did not converge", "raise max_cycle")


def _pyscf(part: str = "") -> Any:
    """Import PySCF, or a part of it, by name: it has no types."""
    try:
        return import_module(f"pyscf.{part}" if part else "pyscf")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyscf":
            raise
        raise ConfigError("labels by PySCF need a package that is missing", pip_install("pyscf")) from error


def _functional(theory: str, dispersion: str | None, forces: bool, response: bool) -> None:
    """Refuse what PySCF cannot compute helium with. Raises ConfigError."""
    if dispersion is not None:
        _dispersion(theory, dispersion)
    # helium on the coarsest grid takes no time, and fails in the same way
    field = _pyscf("dft").RKS(_pyscf("gto").M(atom="He", basis="sto-3g", verbose=0))
    field.disp, field.grids.level = dispersion, 0
    try:
        if not theory.strip():
            raise KeyError(theory)
        field.xc = theory
        field.kernel()
        if forces:
            field.nuc_grad_method().kernel()
        if response:
            field.gen_response()
    except Exception as error:  # of all kinds, for what it does not know and what it does not have
        said = str(error).partition("\n")[0].strip(" .'\"") or type(error).__name__
        raise ConfigError(
            f"PySCF cannot compute {theory!r} ({said}): give HF, {', '.join(CORRELATED)} or a functional that it "
            'knows, as theory = "PBE" with dispersion = "d3bj", or theory = "wb97x-v"'
        ) from error


def _dispersion(functional: str, version: str) -> None:
    """Refuse a correction that has no parameters for the functional. Raises ConfigError."""
    known = ("d3bj", "d3zero", "d3bjm", "d3zerom", "d3op", "d4")
    if version not in known:
        raise ConfigError(f"there is no dispersion correction {version!r}", f"give one of {', '.join(known)}")
    try:
        parse = _pyscf("scf.dispersion").parse_disp
        module = _pyscf("dispersion.dftd4" if version == "d4" else "dispersion.dftd3")
        probe = _pyscf("gto").M(atom="He", verbose=0)
        # as PySCF takes a functional's name apart: `wb97x-v` has a dispersion of its own
        name, kind, three_body = parse(functional, version)
        if version == "d4":
            module.DFTD4Dispersion(probe, xc=name, atm=three_body)
        else:
            module.DFTD3Dispersion(probe, xc=name, version=kind, atm=three_body)
    except (ImportError, OSError) as error:
        raise ConfigError("dispersion needs a package that is missing", pip_install("pyscf-dispersion")) from error
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ConfigError(f"{version} has no parameters for {functional}: {error}") from error
