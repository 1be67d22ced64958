"""Labels by quantum Monte Carlo with jQMC (VMC and LRDMC), of molecules and clusters, with their standard errors.

    JQMC(sampler="lrdmc", basis="ccecp-ccpvtz", ecp="ccecp", lattice_spacing=0.2, target_error=0.05).label(frame, 0, 0)

jQMC lives in an environment of its own (`qmc_env`); `qmc_driver` runs there, in a directory of its own for every label.
A label's statistical error is only part of its error: `extra["leaves_out"]` names the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ase.data
import numpy as np

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import FloatArray, Frame
from beadwork.label.codes import qmc_env
from beadwork.label.codes.basis import Basis
from beadwork.label.constants import BOHR, HARTREE
from beadwork.label.label import Label, check_electrons
from beadwork.processes import last_line, run
from beadwork.settings import POSITIVE, Rule, at_least, check, required, setting

SAMPLERS = ("vmc", "lrdmc")
DETERMINANTS = ("JSD", "JAGP")
ORBITALS = ("none", "ao-small", "ao-medium", "ao-large", "ao-full", "mo")
DRIVER = Path(__file__).with_name("qmc_driver.py")

ENOUGH = Rule(lambda steps: steps >= 300, "it must be at least 300, so that error bars mean something")


@dataclass(frozen=True)
class JQMC:
    """A labeller that runs jQMC in a process of its own.

    Without any Jastrow term there is no optimisation. Raises ConfigError for settings that jQMC cannot run, or that
    would give meaningless results.
    """

    sampler: str = field(
        metadata=required(
            "`vmc` (variational) or `lrdmc` (lattice-regularised diffusion: only nodes and lattice remain)",
            choices=SAMPLERS,
        )
    )
    basis: str = field(metadata=required("as PySCF calls it"))
    # named apart from the basis: PySCF would give ccECP's sets all electrons without a word
    ecp: str | None = setting(None, "pseudopotential, as PySCF calls it")
    mean_field: str = setting("RHF", "whose orbitals make the determinant: `RHF` or a functional (`LDA_X,LDA_C_PZ`)")
    cartesian: bool = setting(True, "d functions by six")
    determinant: str = setting(
        "JSD", "`JSD`, one Slater determinant, or `JAGP`, a geminal, optimised after the Jastrow", choices=DETERMINANTS
    )
    optimise_orbitals: bool = setting(
        False,
        "optimise the determinant's orbitals with the Jastrow: a part of the bias of VMC's forces is theirs",
    )
    one_body: float = setting(
        0.0, "start of this Jastrow term, 0 leaves it out; all electrons want 1, an `ecp` wants 0", ""
    )
    two_body: float = setting(1.0, "start of this Jastrow term, 0 leaves it out", "")
    three_body: str = setting(
        "ao-small",
        "this term's orbitals: `ao-small`, `ao-medium`, `ao-large`, `ao-full`, `mo`, `none`",
        choices=ORBITALS,
    )
    optimisation_steps: int = setting(40, "of the trial function; 0: it stays as it starts", "steps")
    optimisation_samples: int = setting(60, "a walker and step", "samples", rule=at_least(20))
    optimisation_delta: float | None = setting(
        None, "jQMC's `delta`", "", unset="each step goes as far as the energy falls", rule=POSITIVE
    )
    start_from: Path | None = setting(
        None,
        "optimised.h5 in the folder of an earlier label (see `directory`) with the same atoms in the same order: the "
        "Jastrow factor begins as that one's",
        unset="each label begins with `one_body` and `two_body`",
    )
    lattice_spacing: float = setting(0.2, "of LRDMC", "Bohr", rule=POSITIVE)
    further_spacings: list[float] = setting(
        [],
        "of LRDMC: the label is then the energy at a = 0, on a line in a² through these and `lattice_spacing`",
        "Bohr",
        rule=Rule(lambda given: all(one > 0 for one in given), "each must be positive"),
    )
    non_local_move: str = setting("dltmove", "how LRDMC takes a pseudopotential: `dltmove` or `tmove`")
    steps: int = setting(1000, "of each walker", "measurements", rule=ENOUGH)
    target_error: float | None = setting(
        None, "goes on beyond `steps` until the error is as small", "eV", rule=POSITIVE
    )
    # an error falls as one over the root of the time, so a target that is too small would run for ever
    most_steps: int = setting(100_000, "where it stops in any case", "measurements", rule=ENOUGH)
    walkers: int = setting(64, "side by side", "walkers", rule=POSITIVE)
    moves: int = setting(30, "between two measurements", "moves", rule=POSITIVE)
    forces: bool = setting(False, "compute them; those of LRDMC are hardly of use")
    step_length: float = setting(2.0, "of VMC's moves", "Bohr", rule=POSITIVE)
    epsilon_AS: float = setting(0.01, "of the regularisation at the nodes, above 0", "", rule=POSITIVE)
    seed: int = setting(1, "with the frame it makes the frame's own: two frames never share their noise", "")
    timeout: float = setting(86400.0, "time of a label; one that takes longer is lost", "s", rule=POSITIVE)
    environment: Path | None = setting(None, "jQMC's", unset="the one in the default place")
    directory: Path | None = setting(
        None, "keeps jQMC's files, a folder a label", unset="only those of labels that failed are kept"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.ecp and self.one_body:
            raise ConfigError(
                "with a pseudopotential a one-body Jastrow term starts far too low and can end in NaN: leave it out"
            )
        if self.determinant == "JAGP" and not self.optimises:
            raise ConfigError("JAGP needs a Jastrow term and optimisation_steps: it starts as the plain determinant")
        if self.optimise_orbitals and not (self.optimises and self.determinant == "JSD"):
            raise ConfigError(
                "optimise_orbitals is of JSD with a Jastrow term and optimisation_steps",
                "JAGP's geminal is optimised in any case",
            )
        if self.further_spacings:
            self._check_spacings()
        if self.start_from is not None:
            self._check_start(self.start_from)
        qmc_env.find(self.environment)

    def _check_spacings(self) -> None:
        if self.sampler != "lrdmc":
            raise ConfigError("further_spacings are of LRDMC: VMC has no lattice")
        # equal ones have no slope between them
        if len({self.lattice_spacing, *self.further_spacings}) < 1 + len(self.further_spacings):
            raise ConfigError(
                f"lattice_spacing {self.lattice_spacing} or one of {self.further_spacings} is there twice"
            )
        if self.forces:
            raise ConfigError("forces of LRDMC are not extrapolated", "leave out forces or further_spacings")

    def _check_start(self, file: Path) -> None:
        if self.three_body == "mo" or not (self.one_body or self.two_body or self.three_body != "none"):
            raise ConfigError(
                "start_from is of a Jastrow factor of atomic orbitals: molecular ones change with the geometry",
                "give it with a three_body of ao-small or larger, or with none and two_body",
            )
        if not file.is_file():
            raise ConfigError(
                f"start_from is {file}, which is no file", "give the optimised.h5 of a label made with `directory`"
            )

    @property
    def optimises(self) -> bool:
        """Whether there is a Jastrow factor, and the settings allow its optimisation."""
        return self.optimisation_steps > 0 and bool(self.one_body or self.two_body or self.three_body != "none")

    @property
    def trial_function(self) -> str:
        """For instance `JSD (RHF/ccecp-ccpvtz, ccecp; J2, J3 ao-small; optimised in 40 steps of 60x64)`.

        Starts of Jastrow terms are named (`J2 0.7`) where nothing is optimised, and where they are not 1.0.
        """
        named = {"J1": self.one_body, "J2": self.two_body}
        # stored labels do not name a start of 1.0 that was optimised: naming it now would make them another method
        terms = [
            name if (start == 1.0 and self.optimises) or self.start_from is not None else f"{name} {start}"
            for name, start in named.items()
            if start
        ]
        terms += [f"J3 {self.three_body}"] if self.three_body != "none" else []
        kind = self.determinant if terms else "SD"
        level = f"{self.mean_field}/{self.basis}" + (", Cartesian" if self.cartesian else "")
        level += ", orbitals optimised" if self.optimise_orbitals else ""
        parts = [level + (f", {self.ecp}" if self.ecp else ""), ", ".join(terms)]
        steps = f"optimised in {self.optimisation_steps} steps of {self.optimisation_samples}x{self.walkers}"
        steps += f", delta {self.optimisation_delta}" if self.optimisation_delta else ""
        parts.append(steps if self.optimises else "")
        if self.start_from is not None:
            parts.append(f"Jastrow factor {'from' if self.optimises else 'of'} {_digest(self.start_from)}")
        return f"{kind} ({'; '.join(part for part in parts if part)})"

    @property
    def method(self) -> str:
        """Sampler and trial function: all on which the label depends besides its noise."""
        if self.sampler == "vmc":
            return f"VMC, {self.trial_function}"
        move = f", {self.non_local_move}" if self.ecp else ""
        # a finite population has a bias; the trial function's text names the walkers already where it was optimised
        walkers = "" if self.optimises else f", {self.walkers} walkers"
        return f"LRDMC, a = {self._spacing}{move}{walkers}, {self.trial_function}"

    @property
    def _spacing(self) -> str:
        """As `0.2 Bohr`, or `0 from 0.2, 0.3 Bohr`."""
        if not self.further_spacings:
            return f"{self.lattice_spacing} Bohr"
        return f"0 from {', '.join(map(str, sorted([self.lattice_spacing, *self.further_spacings])))} Bohr"

    def check(self, frame: Frame, charge: int, spin: int) -> None:
        """Refuse a periodic frame, a spin that the electrons cannot have, and a basis without the core where PySCF is
        here too. Raises LabelError."""
        if any(frame.pbc):
            raise LabelError(
                "jQMC computes molecules and clusters: cut one from the periodic frame (`cut` in the TOML)"
            )
        check_electrons(frame, charge, spin)
        # the check wants PySCF in this environment; jQMC's own has another one
        if find_spec("pyscf") is not None:
            Basis(self.basis, self.ecp, own=False).molecule(int(number) for number in frame.numbers)

    def label(self, frame: Frame, charge: int, spin: int) -> Label:
        """Compute one label. Raises LabelError where jQMC cannot run, does not finish or gives meaningless numbers."""
        self.check(frame, charge, spin)
        python = qmc_env.find(self.environment)
        job = self._job(frame, charge, spin)
        if self.directory:
            self.directory.mkdir(parents=True, exist_ok=True)
        # an empty one: PySCF's writer of TREXIO updates a file that it finds
        folder = Path(tempfile.mkdtemp(prefix="qmc-", dir=self.directory))
        start = time.perf_counter()
        result = self._run(python, job, folder)
        label = self._label(job, result, folder, time.perf_counter() - start)
        # a label that failed has raised before this, and its folder stays to be read
        if not self.directory:
            shutil.rmtree(folder)
        return label

    def seconds(self, frame: Frame) -> float:
        """Rough: measured with H2O on one core and grown with the electrons; what a target error adds is not known."""
        # a pseudopotential stands for two electrons of each atom heavier than helium (first row)
        electrons = max(int(frame.numbers.sum()) - (2 * int((frame.numbers > 2).sum()) if self.ecp else 0), 1)
        growth: float = (electrons / 8) ** 1.7
        optimisation = 1.7e-3 * growth * self.optimisation_steps * self.optimisation_samples * self.walkers
        # of the Jastrow factor alone first, then of the orbitals or the geminal too
        optimisation *= 2 if self.optimise_orbitals or self.determinant == "JAGP" else 1
        rate = 1.5e-5 if self.sampler == "vmc" else 2.2e-4  # a walker and move
        measured = rate * growth * self.steps * self.walkers * self.moves * (3 if self.forces else 1)
        return 30.0 + optimisation * self.optimises + measured * (1 + len(self.further_spacings))

    def _job(self, frame: Frame, charge: int, spin: int) -> dict[str, Any]:
        """The driver's input. Bohr and Hartree."""
        symbols = [ase.data.chemical_symbols[number] for number in frame.numbers]
        # a frame's own seed: the same frame gives the same label, another one independent noise
        told = json.dumps([symbols, frame.positions.tolist(), charge, spin, self.seed])
        return {
            "symbols": symbols,
            "positions": (frame.positions / BOHR).tolist(),
            "charge": charge,
            "spin": spin,
            # jQMC hands it to NumPy and JAX, and the driver adds up to 2
            "seed": int(hashlib.sha256(told.encode()).hexdigest()[:7], 16),
            "basis": self.basis,
            "ecp": self.ecp,
            "cartesian": self.cartesian,
            "mean_field": self.mean_field,
            "determinant": self.determinant,
            "jastrow": {
                "one_body": self.one_body or None,
                "two_body": self.two_body or None,
                "three_body": self.three_body,
            },
            "optimisation": {
                "steps": self.optimisation_steps if self.optimises else 0,
                "samples": self.optimisation_samples,
                "delta": self.optimisation_delta,
            },
            "method": self.sampler,
            "lattice_spacing": self.lattice_spacing,
            "further_spacings": self.further_spacings,
            "orbitals": self.optimise_orbitals,
            "start_from": self.start_from and str(self.start_from.absolute()),
            "non_local_move": self.non_local_move,
            "walkers": self.walkers,
            "moves": self.moves,
            "steps": self.steps,
            "most_steps": self.most_steps if self.target_error else self.steps,
            # the driver knows atomic units alone
            "target_error": self.target_error / HARTREE if self.target_error else None,
            "step_length": self.step_length,
            "epsilon_AS": self.epsilon_AS,
            "forces": self.forces,
        }

    def _run(self, python: Path, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Run the driver in its folder and read what it wrote."""
        (folder / "job.json").write_text(json.dumps(job, indent=1))
        # isolated: no PYTHONPATH, and no module of ours that stands beside the driver
        command = [str(python), "-I", str(DRIVER), "job.json", "result.json"]
        try:
            code = run(command, folder / "driver.log", folder, self.timeout, _environment())
        except OSError as error:
            raise LabelError(f"jQMC could not be started: {error}", "make its environment again") from error
        except subprocess.TimeoutExpired:
            raise LabelError(
                f"jQMC was stopped after {self.timeout} s, see {folder}", "raise timeout, or ask for less"
            ) from None
        if code:
            raise LabelError(f"jQMC ended with code {code}: {last_line(folder / 'driver.log')[:400]}", f"see {folder}")
        try:
            result = json.loads((folder / "result.json").read_text())
        except (OSError, ValueError) as error:
            raise LabelError(
                f"jQMC ended well but left no result that can be read: {error}", f"see {folder}"
            ) from error
        if not isinstance(result, dict):
            raise LabelError(f"jQMC left a {type(result).__name__} for a result", f"see {folder}")
        return result

    def _label(self, job: dict[str, Any], result: dict[str, Any], folder: Path, seconds: float) -> Label:
        """The driver's result in eV and Å, with its card."""
        try:
            forces, errors = (
                None if result[name] is None else np.array(result[name], dtype=np.float64) * (HARTREE / BOHR)
                for name in ("forces", "forces_error")
            )
            # an error of 0 would count as an exact label in training
            if not self._fits(forces, job) or result["energy_error"] == 0:
                raise ValueError("no error bar, or forces that do not fit the atoms")
            return Label(
                energy=float(result["energy"]) * HARTREE,
                forces=forces,
                energy_error=float(result["energy_error"]) * HARTREE,
                forces_error=errors,
                method=self.method,
                code="jQMC",
                version=str(result["versions"]["jqmc"]),
                charge=job["charge"],
                spin=job["spin"],
                input=json.dumps(job),
                seconds=seconds,
                extra=self._card(result),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LabelError(f"jQMC's result lacks or garbles {error}", f"see {folder}") from error

    def _fits(self, forces: FloatArray | None, job: dict[str, Any]) -> bool:
        return forces.shape == (len(job["symbols"]), 3) if forces is not None else not self.forces

    def _card(self, result: dict[str, Any]) -> dict[str, Any]:
        """What a user of the label must know: the trial function, and the errors that the error bar does not
        contain."""
        optimisation = result["optimisation"]
        return {
            "trial_function": self.trial_function,
            "error_bars": f"standard errors by jackknife over {result['blocks']} blocks",
            "energy_error_half_the_blocks": result["energy_error_half_the_blocks"] * HARTREE,
            "energy_by_window": {key: value * HARTREE for key, value in result["energy_by_window"].items()},
            "leaves_out": self.leaves_out(),
            "lattice_spacing": None
            if self.sampler == "vmc"
            else 0.0
            if self.further_spacings
            else self.lattice_spacing,
            **self._by_spacing(result),
            "variance": result["variance"] * HARTREE**2,
            "acceptance": result["acceptance"],
            "measurements": result["measurements"],
            "walkers": result["walkers"],
            "seed": result["seed"],
            "mean_field_energy": result["mean_field_energy"] * HARTREE,
            "optimised_energy": optimisation["energy"] * HARTREE if optimisation else None,
            "share_of_step": optimisation.get("share_of_step") if optimisation else None,
            "versions": result["versions"],
            "seconds": result["seconds"],
            "cpu_seconds": result["cpu_seconds"],
        }

    def _by_spacing(self, result: dict[str, Any]) -> dict[str, Any]:
        """What an extrapolation was made of."""
        if not self.further_spacings:
            return {}
        found = {
            spacing: {name: one[name] * HARTREE for name in ("energy", "energy_error")}
            | {name: one[name] for name in ("measurements", "acceptance")}
            for spacing, one in result["by_spacing"].items()
        }
        return {"by_spacing": found, "chi_square_of_the_line": result["chi_square"]}

    def leaves_out(self) -> list[str]:
        """The errors that the error bars of these labels do not contain."""
        named = [f"basis and form of the trial function: {self.trial_function}"]
        if self.sampler == "lrdmc":
            named = [
                "fixed nodes of the trial function's determinant (none where it has no nodes, as in H2)",
                f"lattice spacing of {self.lattice_spacing} Bohr: of order a², and it depends on the Jastrow factor"
                if not self.further_spacings
                else f"what is no line in a² between the lattice spacings (a = {self._spacing})",
                "error bars come from about twenty blocks, and are themselves uncertain by a sixth",
                f"population of {self.walkers} walkers: of order variance / walkers, less what the weights mend "
                "(`energy_by_window`: the energy with the weights of so many measurements)",
            ]
        if self.ecp:
            named.append(f"pseudopotential {self.ecp}" + (", with locality error" if self.sampler == "lrdmc" else ""))
        if self.forces and self.sampler == "vmc":
            named.append(
                "bias of the forces, as not all of the trial function follows the atoms (for H2 at 1.0 Å 9 % with one "
                "determinant, 6 % with its orbitals optimised, 2 % with JAGP); errors of the atoms' forces are "
                "correlated (space warp)"
            )
        elif self.forces:
            named.append("bias of the forces by Reynolds' approximation, with a noise that can have no finite variance")
        return named


def _digest(file: Path) -> str:
    """Eight figures that name a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def _environment() -> dict[str, str]:
    """One thread, and JAX's compiled functions in the user's cache."""
    cache = qmc_env.cache()
    cache.mkdir(parents=True, exist_ok=True)
    # jQMC is run by several workers, each on one thread
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    defaults = {"JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    # where the cache lies the user may decide, the number of threads not
    return defaults | dict(os.environ) | one
