"""Labels by PySCF: density functionals, Hartree-Fock, MP2, CCSD and CCSD(T), of molecules and clusters.

Closed shells are computed restricted, all others unrestricted. Gradients are those that PySCF has analytically; of a
density functional they hold the response of the grid, without which they are not the derivative of the energy (1e-3
eV/Å on a coarse grid); of CCSD(T) they are there for closed shells alone. Energies are converted with `constants`.
What PySCF warns of is in the label (`warnings`), and on stderr.
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

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import FloatArray, Frame
from beadwork.label.codes.basis import Basis
from beadwork.label.constants import BOHR, HARTREE
from beadwork.label.label import Label
from beadwork.settings import required, setting

#: methods that are not density functionals
CORRELATED = ("MP2", "CCSD", "CCSD(T)")
#: CPU seconds of a label of (H2O)4 in cc-pVDZ (96 basis functions) without and with forces, and the power of the number
#: of basis functions with which they grow; measured from one to four molecules, of CCSD(T) to two
_COST = {"DFT": (10.0, 18.0, 2.2), "HF": (1.3, 4.7, 3.2), "MP2": (1.6, 16.0, 4.1)}
_COST |= {"CCSD": (50.0, 101.0, 4.5), "CCSD(T)": (150.0, 3500.0, 5.6)}
#: s, however small the molecule
_START = 0.3


@dataclass(frozen=True)
class PySCF:
    """A labeller that calls PySCF in this process. Raises ConfigError for what PySCF does not know."""

    theory: str = field(
        metadata=required("`HF`, `MP2`, `CCSD`, `CCSD(T)`, or a functional as libxc calls it (`PBE`, `B3LYP`, `SCAN`)")
    )
    basis: str = field(metadata=required("as PySCF calls it"))
    ecp: str | None = setting(
        None,
        "pseudopotential, as PySCF calls it (`ccecp`)",
        unset="those that a basis as def2 has under its own name",
    )
    pseudo: str | None = setting(None, "the same of Goedecker, Teter and Hutter (`gth-pbe`), in place of `ecp`")
    dispersion: str | None = setting(None, "`d3bj`, `d3zero` or `d4` on top of a functional (needs pyscf-dispersion)")
    frozen_core: bool = setting(False, "leave the inner shells out of the correlation")
    forces: bool = setting(True, "compute them")
    scf_tol: float = setting(1e-10, "change of the energy at which the self-consistent field ends", "Hartree")
    cc_tol: float = setting(1e-9, "the same of coupled cluster", "Hartree")
    grid: int = setting(3, "PySCF's level, 0 to 9", "")
    max_cycle: int = setting(100, "of the self-consistent field", "cycles")
    threads: int = setting(1, "of a label", "cores")
    max_memory: int = setting(4000, "beyond which PySCF works on disk where it can", "MB")

    def __post_init__(self) -> None:
        _pyscf()
        correlated = self.theory in CORRELATED
        if self.kind == "DFT":
            _functional(self.theory, self.dispersion, self.forces)
        elif self.dispersion is not None:
            raise ConfigError(f"{self.theory} takes no dispersion correction; leave out {self.dispersion!r}")
        if self.frozen_core and not correlated:
            raise ConfigError(f"{self.theory} has no core to freeze: leave out frozen_core")
        if self.pseudo and correlated and self.forces:
            raise ConfigError(
                f"PySCF's forces of {self.theory} with the pseudo {self.pseudo} are not the derivative of its energy "
                "(0.09 eV/Å for H2O): set forces = false, or take an ecp"
            )
        self._basis  # noqa: B018  (a wrong name ends here, not with the first frame)
        if not (self.scf_tol > 0 and self.cc_tol > 0 and 0 <= self.grid <= 9 and min(self.threads, self.max_cycle) > 0):
            raise ConfigError(
                f"tolerances, threads and max_cycle are positive, grid is 0 to 9; got {self.scf_tol}, {self.cc_tol}, "
                f"{self.threads}, {self.max_cycle} and {self.grid}"
            )

    @cached_property
    def kind(self) -> str:
        """The method, or `DFT` for all functionals."""
        return self.theory if self.theory in (*CORRELATED, "HF") else "DFT"

    @property
    def method(self) -> str:
        """For instance `PBE-d3bj/cc-pVDZ, grid 3` or `CCSD(T)/cc-pVTZ, frozen core, cc_tol 1e-07`."""
        parts = [self.theory + (f"-{self.dispersion}" if self.dispersion else "") + f"/{self._basis.title}"]
        if self.kind == "DFT":
            parts.append(f"grid {self.grid}")
        elif self.kind in CORRELATED:
            parts.append("frozen core" if self.frozen_core else "all electrons")
        used = ("scf_tol", "cc_tol") if self.kind.startswith("CC") else ("scf_tol",)
        # stored labels do not name the defaults: naming them now would make them another method
        parts += [f"{name} {getattr(self, name)}" for name in used if getattr(self, name) != getattr(PySCF, name)]
        return ", ".join(parts)

    def check(self, frame: Frame, charge: int, spin: int) -> None:
        """Refuse what cannot be computed. Raises LabelError."""
        if any(frame.pbc):
            raise LabelError(
                "PySCF computes molecules and clusters: cut one from the periodic frame (`cut` in the TOML)"
            )
        if self.theory == "CCSD(T)" and self.forces and spin:
            raise LabelError(
                "PySCF's forces of CCSD(T) for open shells are not the derivative of its energy (7e-4 eV/Å for H2O+): "
                "label such structures with forces = false, or with CCSD"
            )
        self._molecule(frame, charge, spin)

    def label(self, frame: Frame, charge: int, spin: int) -> Label:
        """Compute one label. Raises LabelError for what does not converge, or what PySCF cannot do."""
        self.check(frame, charge, spin)
        start = time.perf_counter()
        lib = _pyscf("lib")
        try:
            with lib.with_omp_threads(self.threads):
                mol = self._molecule(frame, charge, spin)
                energy, gradient, extra = self._compute(mol)
        except LabelError:
            raise
        except Exception as error:  # PySCF raises all kinds; each becomes the reason that the queue stores
            raise LabelError(
                f"PySCF could not label the frame: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if said := [" ".join(line.split()) for line in mol.stdout.getvalue().splitlines() if line.strip()]:
            extra = {**extra, "warnings": said}
        return Label(
            energy=energy * HARTREE,
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
        )

    def seconds(self, frame: Frame) -> float:
        """Rough: measured on (H2O)4, grown with a power of the basis functions and shared among the threads."""
        plain, with_forces, power = _COST[self.kind]
        functions = sum(self._basis.functions(int(number)) * count for number, count in Counter(frame.numbers).items())
        one_core = (with_forces if self.forces else plain) * (functions / 96) ** power
        return _START + float(one_core / self.threads**0.8)  # the power is a guess: threads never help in full

    @cached_property
    def _basis(self) -> Basis:
        return Basis(self.basis, self.ecp, self.pseudo)

    def _molecule(self, frame: Frame, charge: int, spin: int) -> Any:
        """Raises LabelError for elements that the basis has not, and a spin that the electrons cannot have."""
        gto = _pyscf("gto")
        symbols = (gto.elements.ELEMENTS[int(number)] for number in frame.numbers)
        told = self._basis.molecule(int(number) for number in frame.numbers)
        mol = gto.Mole()
        mol.stdout = io.StringIO()
        try:
            return mol.build(
                dump_input=False,
                parse_arg=False,
                verbose=_pyscf("lib").logger.WARN,
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

    def _compute(self, mol: Any) -> tuple[float, FloatArray | None, dict[str, Any]]:
        """Return the energy in Hartree, the gradient in Hartree/Bohr or None, and what else is worth keeping."""
        field = self._field(mol)
        if self.kind not in CORRELATED or mol.nelectron == 1:  # one electron has nothing to correlate with
            gradient = field.nuc_grad_method()
            if self.kind == "DFT":
                gradient.grid_response = True
            return float(field.e_tot), gradient.kernel() if self.forces else None, _spin_of(field)
        frozen = _pyscf("data.elements").chemcore(mol) if self.frozen_core else None
        extra = {"scf_energy": float(field.e_tot) * HARTREE, **_spin_of(field)}
        if self.kind == "MP2":
            perturbed = _pyscf("mp").MP2(field, frozen=frozen)
            perturbed.kernel()
            return float(perturbed.e_tot), perturbed.nuc_grad_method().kernel() if self.forces else None, extra
        return self._coupled_cluster(field, frozen, extra)

    def _field(self, mol: Any) -> Any:
        """Return the converged mean field."""
        open_shell = mol.spin != 0
        if self.kind == "DFT":
            dft = _pyscf("dft")
            field = (dft.UKS if open_shell else dft.RKS)(mol, xc=self.theory)
            field.grids.level = self.grid
            field.disp = self.dispersion
        else:
            scf = _pyscf("scf")
            field = (scf.UHF if open_shell else scf.RHF)(mol)
        field.conv_tol = self.scf_tol
        field.max_cycle = self.max_cycle
        field.kernel()
        if not field.converged:
            raise LabelError(
                f"the self-consistent field did not converge in {self.max_cycle} cycles to {self.scf_tol} Hartree; "
                "check charge and spin of the structure, or raise max_cycle"
            )
        return field

    def _coupled_cluster(
        self, field: Any, frozen: int | None, extra: dict[str, Any]
    ) -> tuple[float, FloatArray | None, dict[str, Any]]:
        solver = _pyscf("cc").CCSD(field, frozen=frozen)
        solver.conv_tol = self.cc_tol
        solver.max_cycle = self.max_cycle
        integrals = solver.ao2mo()
        solver.kernel(eris=integrals)
        if not solver.converged:
            raise LabelError(
                f"coupled cluster did not converge in {self.max_cycle} cycles to {self.cc_tol} Hartree; "
                "the structure may be far from closed shells: look at it, or raise max_cycle"
            )
        energy = float(solver.e_tot)
        if self.kind == "CCSD":
            if not self.forces:
                return energy, None, extra
            solver.solve_lambda(eris=integrals)
            _settled(solver.converged_lambda)
            return energy, solver.nuc_grad_method().kernel(), extra
        energy += float(solver.ccsd_t(eris=integrals))
        if not self.forces:
            return energy, None, extra
        equations, gradients = _pyscf("cc.ccsd_t_lambda"), _pyscf("grad.ccsd_t")
        settled, l1, l2 = equations.kernel(
            solver, integrals, solver.t1, solver.t2, max_cycle=self.max_cycle, tol=self.cc_tol, verbose=0
        )
        _settled(settled)
        gradient = gradients.Gradients(solver).kernel(solver.t1, solver.t2, l1, l2, eris=integrals)
        return energy, gradient, extra

    def _input(self, frame: Frame, charge: int, spin: int) -> str:
        return json.dumps(
            {
                "method": self.theory,
                "basis": self.basis,
                "ecp": self.ecp,
                "pseudo": self.pseudo,
                "dispersion": self.dispersion,
                "frozen_core": self.frozen_core,
                "forces": self.forces,
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
        raise LabelError("the Λ equations, which the forces need, did not converge; raise max_cycle")


def _spin_of(field: Any) -> dict[str, Any]:
    """<S²> of an unrestricted mean field: how far it is from a pure spin."""
    return {"s2": float(field.spin_square()[0])} if field.mol.spin else {}


def _pyscf(part: str = "") -> Any:
    """Import PySCF, or a part of it, by name: it has no types."""
    try:
        return import_module(f"pyscf.{part}" if part else "pyscf")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyscf":
            raise
        raise ConfigError("labels by PySCF need a package that is missing; pip install 'beadwork[pyscf]'") from error


def _functional(theory: str, dispersion: str | None, forces: bool) -> None:
    """Refuse what PySCF cannot compute helium with. Raises ConfigError."""
    if dispersion is not None:
        _dispersion(theory, dispersion)
    field = _pyscf("dft").RKS(_pyscf("gto").M(atom="He", basis="sto-3g", verbose=0))
    field.disp, field.grids.level = dispersion, 0
    try:
        if not theory.strip():
            raise KeyError(theory)
        field.xc = theory
        field.kernel()
        if forces:
            field.nuc_grad_method().kernel()
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
        raise ConfigError(f"there is no dispersion correction {version!r}; give one of {', '.join(known)}")
    try:
        parse = _pyscf("scf.dispersion").parse_disp
        module = _pyscf("dispersion.dftd4" if version == "d4" else "dispersion.dftd3")
        probe = _pyscf("gto").M(atom="He", verbose=0)
        name, kind, three_body = parse(functional, version)
        if version == "d4":
            module.DFTD4Dispersion(probe, xc=name, atm=three_body)
        else:
            module.DFTD3Dispersion(probe, xc=name, version=kind, atm=three_body)
    except (ImportError, OSError) as error:
        raise ConfigError("dispersion needs a package that is missing; pip install pyscf-dispersion") from error
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ConfigError(f"{version} has no parameters for {functional}: {error}") from error
