"""One quantum Monte Carlo label with jQMC 0.2.2: `python qmc_driver.py job.json result.json`.

Runs in jQMC's own environment, in a directory of its own, and imports nothing of beadwork: `qmc.py` writes job.json and
reads result.json, and explains each key. Bohr, Hartree, and full precision, which jQMC's text output does not have.
result.json appears only after success; any failure ends in a traceback and an exit code above 0.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

#: equilibration: at least so many measurements are discarded; jQMC warns below 30 in VMC and 25 in LRDMC
WARMUP = 50
#: Hartree^-1 of imaginary time for the equilibration of LRDMC's walkers, which start at random around the atoms: H2O's
#: energy was 65 mHa too high in the first 0.5 of it, and after that within the noise (8 mHa; 512 walkers, a = 0.30)
SETTLE_TIME = 2.0
#: jackknife blocks: per walker in VMC, in total in LRDMC
BLOCKS = {"vmc": 10, "lrdmc": 20}
#: measurements whose weights LRDMC multiplies together, to correct the bias of a finite number of walkers
COLLECT = 10
#: the energy is also computed with shorter and longer products of weights: if it drifts, there are too few walkers
WINDOWS = (5, 10, 20, 40)
#: fractions of the step along the natural gradient that minimises the energy; the next one is tried after a divergence
STEP_FRACTIONS = (1.0, 0.3, 0.1)


def main(job_file: str, result_file: str) -> None:
    """Read a job, compute it, write the result by a rename."""
    # a thread, since a worker that is killed with -9 can tell nobody
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(filename="jqmc.log", level=logging.WARNING, format="%(asctime)s %(message)s")
    job = json.loads(Path(job_file).read_text())
    result = compute(job)
    part = Path(result_file + ".part")
    # NaN is no JSON, and no label
    part.write_text(json.dumps(result, indent=1, allow_nan=False))
    part.replace(result_file)


def _end_with_parent(parent: int) -> None:
    """End with the worker: a killed one must not leave hours of sampling running."""
    # the parent of an orphan is another process
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(3)


def compute(job: dict[str, Any]) -> dict[str, Any]:
    """Mean field, trial function, optimisation, sampling."""
    seconds, cpu_seconds = {}, {}
    clock = [(time.perf_counter(), 0.0)]

    def lap(part: str) -> None:
        clock.append((time.perf_counter(), time.process_time()))
        seconds[part], cpu_seconds[part] = (now - then for now, then in zip(clock[-1], clock[-2], strict=True))

    mean_field = trial_function(job, Path("trexio.h5"), Path("hamiltonian.h5"))
    lap("mean_field")
    hamiltonian, optimisation = optimised(job, Path("hamiltonian.h5"), mean_field)
    hamiltonian.save_to_hdf5("optimised.h5")
    lap("optimisation")
    guess = optimisation["energy"] if optimisation else mean_field
    sampled = extrapolated(job, hamiltonian, guess) if job["further_spacings"] else sample(job, hamiltonian, guess)
    near(mean_field, sampled["energy"], job["method"])
    lap("sampling")
    return {
        **sampled,
        "mean_field_energy": mean_field,
        "optimisation": optimisation,
        "seed": job["seed"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "versions": versions(),
    }


def trial_function(job: dict[str, Any], trexio_file: Path, hamiltonian_file: Path) -> float:
    """Write jQMC's Hamiltonian with an unoptimised Jastrow; return the mean field's energy."""
    from jqmc.jqmc_tool import trexio_convert_to
    from pyscf import dft, gto, scf
    from pyscf.tools import trexio

    logging.getLogger("jqmc").setLevel(logging.INFO)  # here, since importing jqmc_tool lowers it
    atoms = list(zip(job["symbols"], job["positions"], strict=True))
    molecule = gto.M(
        atom=atoms,
        # Bohr, as job.json has it: no constant of PySCF's comes in
        unit="B",
        basis=job["basis"],
        ecp=job["ecp"] or {},
        charge=job["charge"],
        spin=job["spin"],
        cart=job["cartesian"],
        # PySCF would turn the molecule into its standard orientation, and forces with it
        symmetry=False,
        verbose=4,
        output="pyscf.log",
    )
    if job["mean_field"] == "RHF":
        solver = scf.RHF(molecule)
    else:
        solver = dft.RKS(molecule)
        solver.xc = job["mean_field"]
    solver.conv_tol = 1e-11
    solver.max_cycle = 200
    solver.kernel()
    if not solver.converged:
        raise RuntimeError(f"{job['mean_field']}/{job['basis']} did not converge in {solver.max_cycle} cycles")
    trexio_file.unlink(missing_ok=True)  # to_trexio would update an existing file
    trexio.to_trexio(solver, str(trexio_file))
    jastrow = job["jastrow"]
    trexio_convert_to(
        trexio_file=str(trexio_file),
        hamiltonian_file=str(hamiltonian_file),
        j1_parmeter=jastrow["one_body"],
        j2_parmeter=jastrow["two_body"],
        j3_basis_type=jastrow["three_body"],
        j_nn_type=None,
        j_nn_params=None,
        ao_conv_to=None,
    )
    return float(solver.e_tot)


def optimised(job: dict[str, Any], file: Path, mean_field: float) -> tuple[Any, dict[str, Any] | None]:
    """Optimise the Jastrow factor; then for JAGP the geminal too, or for orbitals that are to follow these."""
    from jqmc.hamiltonians import Hamiltonian_data
    from jqmc.wavefunction import Geminal_data, Wavefunction_data

    hamiltonian = Hamiltonian_data.load_from_hdf5(str(file))
    if job["start_from"]:
        hamiltonian = started(hamiltonian, Hamiltonian_data.load_from_hdf5(job["start_from"]))
    steps = job["optimisation"]["steps"]
    if not steps:
        return hamiltonian, None
    hamiltonian, report = steadily(job, hamiltonian, mean_field, geminal=False, seed=job["seed"])
    if job["orbitals"]:
        # after the Jastrow alone, from whose optimum the orbitals have a short way
        hamiltonian, report = steadily(job, hamiltonian, mean_field, geminal=True, seed=job["seed"] + 1)
    if job["determinant"] == "JAGP":
        wavefunction = hamiltonian.wavefunction_data
        # a geminal of atomic orbitals has the determinant as a start, and more freedom
        geminal = Geminal_data.convert_from_MOs_to_AOs(wavefunction.geminal_data)
        hamiltonian = Hamiltonian_data(
            structure_data=hamiltonian.structure_data,
            coulomb_potential_data=hamiltonian.coulomb_potential_data,
            wavefunction_data=Wavefunction_data(jastrow_data=wavefunction.jastrow_data, geminal_data=geminal),
        )
        hamiltonian, report = steadily(job, hamiltonian, mean_field, geminal=True, seed=job["seed"] + 1)
    return hamiltonian, report


def started(hamiltonian: Any, other: Any) -> Any:
    """Give it the Jastrow factor's parameters of another geometry, whose orbitals stay on the atoms."""
    labels = [list(one.structure_data.atomic_labels) for one in (hamiltonian, other)]
    if labels[0] != labels[1]:
        raise ValueError(
            f"start_from is of the atoms {' '.join(labels[1])}, and not {' '.join(labels[0])} in this order"
        )
    wavefunction = hamiltonian.wavefunction_data
    jastrow = wavefunction.jastrow_data
    parameters = {
        "jastrow_one_body_data": "jastrow_1b_param",
        "jastrow_two_body_data": "jastrow_2b_param",
        "jastrow_three_body_data": "j_matrix",
    }
    for term, name in parameters.items():
        here, there = (getattr(one, term) for one in (jastrow, other.wavefunction_data.jastrow_data))
        if (here is None) != (there is None) or (
            here is not None and _shape(getattr(here, name)) != _shape(getattr(there, name))
        ):
            raise ValueError(f"start_from has another {term}: give the settings with which it was made")
        if here is not None:
            jastrow = jastrow.replace(**{term: here.replace(**{name: getattr(there, name)})})
    return hamiltonian.replace(wavefunction_data=wavefunction.replace(jastrow_data=jastrow))


def _shape(values: Any) -> tuple[int, ...]:
    return tuple(getattr(values, "shape", ()))


def steadily(
    job: dict[str, Any], hamiltonian: Any, mean_field: float, *, geminal: bool, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Optimise with full steps, and again from the start with shorter ones where that diverges."""
    for share in STEP_FRACTIONS:
        try:
            better, report = _optimise(job, hamiltonian, share, geminal=geminal, seed=seed)
            near(mean_field, report["energy"], "optimisation")
        except FloatingPointError as error:  # raised here, and by jQMC's conjugate gradients
            if share == STEP_FRACTIONS[-1]:
                raise
            print(f"{error}; steps of {share} were too long", file=sys.stderr)
        else:
            break
    return better, report | {"share_of_step": share}


def near(mean_field: float, energy: float, what: str) -> None:
    """Refuse a diverged energy: jQMC's optimiser can end with -1e38 Ha and without an error."""
    # no correlation energy is so large; and a comparison with NaN fails too
    if not abs(energy - mean_field) < 0.5 + 0.1 * abs(mean_field):
        raise FloatingPointError(
            f"{what} ended with {energy} Ha, the mean field has {mean_field} Ha: it diverged; "
            "take more samples per step"
        )


def _optimise(
    job: dict[str, Any], hamiltonian: Any, share: float, *, geminal: bool, seed: int
) -> tuple[Any, dict[str, Any]]:
    import jax
    import numpy as np
    from jqmc.jqmc_mcmc import MCMC

    settings, jastrow = job["optimisation"], job["jastrow"]
    fixed = settings["delta"] is not None
    walkers = MCMC(
        hamiltonian_data=hamiltonian,
        mcmc_seed=seed,
        num_walkers=job["walkers"],
        num_mcmc_per_measurement=40,
        Dt=job["step_length"],
        epsilon_AS=job["epsilon_AS"],
        comput_log_WF_param_deriv=True,
        # needed for the length of the step that minimises the energy, and costly
        comput_e_L_param_deriv=not fixed,
    )
    walkers.run_optimize(
        num_mcmc_steps=settings["samples"],
        num_opt_steps=settings["steps"],
        wf_dump_freq=settings["steps"],
        num_mcmc_warmup_steps=10,
        num_mcmc_bin_blocks=1,
        opt_J1_param=jastrow["one_body"] is not None,
        opt_J2_param=jastrow["two_body"] is not None,
        opt_J3_param=jastrow["three_body"] != "none",
        opt_JNN_param=False,
        opt_lambda_param=geminal,
        # the geminal stays one of as many orbitals as there are pairs: one determinant
        opt_with_projected_MOs=geminal and job["orbitals"],
        optimizer_kwargs={
            "method": "sr",
            "delta": share * (settings["delta"] if fixed else 1.0),
            "epsilon": 1e-3,
            "use_lm": not fixed,
        },
        use_device_collectives=False,
    )
    walkers.run(num_mcmc_steps=settings["samples"])  # the optimiser discards its last samples
    energy, error, variance, _ = walkers.get_E(num_mcmc_warmup_steps=10, num_mcmc_bin_blocks=1)
    leaves = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(walkers.hamiltonian_data)]
    numbers = [leaf for leaf in leaves if np.issubdtype(leaf.dtype, np.floating)]
    # the optimiser returns without an error when its parameters have become NaN
    if not (np.isfinite(energy) and all(np.isfinite(leaf).all() for leaf in numbers)):
        raise FloatingPointError(f"the optimisation ended with an energy of {energy} Ha, or parameters that are NaN")
    report = {"energy": float(energy), "error": float(error), "variance": float(variance), "steps": settings["steps"]}
    return walkers.hamiltonian_data, report


def extrapolated(job: dict[str, Any], hamiltonian: Any, guess: float) -> dict[str, Any]:
    """Sample at each lattice spacing, and put a line in a² through the energies: the result is its value at a = 0.

    The bias of LRDMC's lattice begins with a² (Casula, Filippi, Sorella, PRL 95, 100201 (2005)).
    """
    spacings = sorted([job["lattice_spacing"], *job["further_spacings"]])
    # of errors that are alike, as those that end at one target: what the target of each must be, so that the value at 0
    # has the one that was asked for
    target = job["target_error"] and job["target_error"] / math.hypot(*weights_at_zero(spacings, [1.0] * len(spacings)))
    of_each = [
        # noise of its own at each spacing; the driver adds up to 2 to a seed
        sample(
            job | {"lattice_spacing": a, "target_error": target, "seed": job["seed"] + 10 * number}, hamiltonian, guess
        )
        for number, a in enumerate(spacings)
    ]
    energies, errors = ([one[name] for one in of_each] for name in ("energy", "energy_error"))
    weights = weights_at_zero(spacings, errors)

    def at_zero(values: list[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    def error(values: list[float]) -> float:
        return math.hypot(*(weight * value for weight, value in zip(weights, values, strict=True)))

    zero = at_zero(energies)
    # the slope that minimises chi square with the value at 0 held
    over = [(a * a / e**2, (energy - zero) / e**2) for a, e, energy in zip(spacings, errors, energies, strict=True)]
    slope = sum(y * a * a for (_, y), a in zip(over, spacings, strict=True)) / sum(
        x * a * a for (x, _), a in zip(over, spacings, strict=True)
    )
    away = [(energy - zero - slope * a * a) / e for energy, a, e in zip(energies, spacings, errors, strict=True)]
    # of a line through so many points: its degrees of freedom are two fewer
    chi_square, freedom = sum(one * one for one in away), len(spacings) - 2
    # points further from the line than their bars: so may be its value at 0 (Birge, Phys. Rev. 40, 207, 1932)
    wider = max(1.0, math.sqrt(chi_square / freedom)) if freedom else 1.0
    finest = of_each[0]
    return finest | {
        "energy": zero,
        "energy_error": wider * error(errors),
        "energy_error_half_the_blocks": wider * error([one["energy_error_half_the_blocks"] for one in of_each]),
        "energy_by_window": {
            window: at_zero([one["energy_by_window"][window] for one in of_each])
            for window in finest["energy_by_window"]
        },
        "measurements": sum(one["measurements"] for one in of_each),
        "by_spacing": dict(zip(map(str, spacings), of_each, strict=True)),
        "chi_square": chi_square,
    }


def weights_at_zero(spacings: list[float], errors: list[float]) -> list[float]:
    """What each energy counts in the value at a = 0 of the line in a² that fits them best, weighted by their errors."""
    shares = [1 / error**2 for error in errors]
    one = sum(shares)
    x = sum(share * a**2 for share, a in zip(shares, spacings, strict=True))
    xx = sum(share * a**4 for share, a in zip(shares, spacings, strict=True))
    return [share * (xx - a**2 * x) / (one * xx - x * x) for share, a in zip(shares, spacings, strict=True)]


def sample(job: dict[str, Any], hamiltonian: Any, guess: float) -> dict[str, Any]:
    """Sample until the target error is reached, or as many measurements as the job allows."""
    method = job["method"]
    walkers = _walkers(job, hamiltonian, guess)
    determinant = hamiltonian.wavefunction_data.geminal_data
    settled = warm_up(job, determinant.num_electron_up + determinant.num_electron_dn)
    more = settled - WARMUP  # in addition to the requested steps
    most = job["most_steps"] + more
    done, wanted = 0, min(job["steps"] + more, most)
    while done < wanted:
        # jQMC ends by itself after max_time seconds; the worker's timeout is the one that counts
        walkers.run(num_mcmc_steps=wanted - done, max_time=10**7)
        done = wanted
        energy, error, variance, _ = walkers.get_E(num_mcmc_warmup_steps=settled, num_mcmc_bin_blocks=BLOCKS[method])
        if job["target_error"] and error > job["target_error"]:
            # the error falls as 1/sqrt(n); a tenth more, because the error itself is uncertain
            enough = 1.1 * (done - settled) * (error / job["target_error"]) ** 2 + settled
            wanted = min(int(enough), most)
    if not (math.isfinite(energy) and math.isfinite(error)):
        raise FloatingPointError(f"{method} ended with an energy of {energy} +- {error} Ha")
    # with half as many blocks the error is larger where blocks are still correlated
    half = walkers.get_E(num_mcmc_warmup_steps=settled, num_mcmc_bin_blocks=max(BLOCKS[method] // 2, 2))[1]
    windows = {}
    for window in WINDOWS if method == "lrdmc" else ():
        walkers.num_gfmc_collect_steps = window
        # all windows begin at the same measurement, so that they differ in the weights alone
        there = settled + COLLECT - window
        windows[window] = float(walkers.get_E(num_mcmc_warmup_steps=there, num_mcmc_bin_blocks=BLOCKS[method])[0])
        walkers.num_gfmc_collect_steps = COLLECT
    forces = errors = None
    if job["forces"]:
        forces, errors = walkers.get_aF(num_mcmc_warmup_steps=settled, num_mcmc_bin_blocks=BLOCKS[method])
        forces, errors = forces.tolist(), errors.tolist()
    return {
        "energy": float(energy),
        "energy_error": float(error),
        "energy_error_half_the_blocks": float(half),
        "energy_by_window": windows,
        "variance": float(variance),
        "forces": forces,
        "forces_error": errors,
        "acceptance": _acceptance(walkers),
        "measurements": done - settled,
        "walkers": job["walkers"],
        # in VMC walkers are independent, so each has blocks of its own
        "blocks": BLOCKS[method] * (job["walkers"] if method == "vmc" else 1),
    }


def warm_up(job: dict[str, Any], electrons: int) -> int:
    """Measurements to discard. A move of LRDMC takes about a²/3 of imaginary time, shared by all electrons."""
    if job["method"] == "vmc":
        return WARMUP
    time = float(job["moves"]) * float(job["lattice_spacing"]) ** 2 / (3 * electrons)
    return max(WARMUP, math.ceil(SETTLE_TIME / time))


def _walkers(job: dict[str, Any], hamiltonian: Any, guess: float) -> Any:
    """jQMC's sampler; its seed is not that of the optimisation, whose noise is in the parameters."""
    seed = job["seed"] + 2
    if job["method"] == "vmc":
        from jqmc.jqmc_mcmc import MCMC

        return MCMC(
            hamiltonian_data=hamiltonian,
            mcmc_seed=seed,
            num_walkers=job["walkers"],
            num_mcmc_per_measurement=job["moves"],
            Dt=job["step_length"],
            epsilon_AS=job["epsilon_AS"],
            comput_position_deriv=job["forces"],
            # space warp: the electrons near an atom move with it, which lowers the noise of VMC's forces
            use_swct=True,
        )
    from jqmc.jqmc_gfmc import GFMC_n

    return GFMC_n(
        hamiltonian_data=hamiltonian,
        mcmc_seed=seed,
        num_walkers=job["walkers"],
        num_mcmc_per_measurement=job["moves"],
        num_gfmc_collect_steps=COLLECT,
        E_scf=guess,
        alat=job["lattice_spacing"],
        non_local_move=job["non_local_move"],
        comput_position_deriv=job["forces"],
        use_swct=False,
    )


def _acceptance(walkers: Any) -> float | None:
    """Accepted moves of all in VMC, walkers that survived branching in LRDMC. jQMC 0.2.2 prints them, and no more."""
    kept, lost = {
        "MCMC": ("_MCMC__accepted_moves", "_MCMC__rejected_moves"),
        "GFMC_n": ("_GFMC_n__num_survived_walkers", "_GFMC_n__num_killed_walkers"),
    }[type(walkers).__name__]
    good, bad = float(getattr(walkers, kept)), float(getattr(walkers, lost))
    return good / (good + bad) if good + bad else None


def versions() -> dict[str, str]:
    """Versions of all packages on which the numbers depend."""
    from importlib.metadata import version

    names = ("jqmc", "jax", "jaxlib", "pyscf", "pyscf-forge", "trexio", "numpy")
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}


if __name__ == "__main__":
    main(*sys.argv[1:])
