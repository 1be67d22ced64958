"""Averages of what i-PI wrote of the whole system and of its atoms, with their errors.

The committee's error is given where a member would have measured the same in a frame as the mean does: of what depends
on positions and cell alone, and of the potential, whose constant part is left out as everywhere. Estimators with forces
in them, as kinetic_cv and pressures, would be other ones with a member's forces, and have none; nor have momenta, which
know of no potential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from ipi.utils.units import unit_to_internal
from numpy.typing import NDArray

from beadwork.analyse.free_energy import Estimate, estimates
from beadwork.analyse.runs import (
    DAMAGED,
    first_step,
    of_energies_and_steps,
    one_of,
    one_state,
    say_earlier,
    thermal,
    weighed,
)
from beadwork.disk import reading
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray, IntArray
from beadwork.ipi.outputs import find_trajectory, write_down
from beadwork.report.committee import read_committee
from beadwork.report.run import RunFolder
from beadwork.report.uncertainty import blocks_of, uncertainty
from beadwork.units import BOHR, HARTREE

#: what says where the run is, and is no observable
_CLOCK = ("step", "time", "conserved")
#: direct estimators of isotope fractionation, and kinetic energies with a scaled mass
_ISOTOPES = ("isotope_zetatd", "isotope_zetasc")
_SCALED_MASS = ("isotope_tdfep", "isotope_scfep")
#: i-PI's properties of positions and cell, and the potential
_OF_MEMBERS = (
    "potential", "kinetic_td", "spring", "r_gyration", "volume", "density", "cell_h",
    "cell_abcABC", "atom_x", "atom_x_path",
)  # fmt: skip
#: J/mol/K
_GAS_CONSTANT = 8.314462618


@dataclass(frozen=True, slots=True)
class Observable:
    """An average. name: i-PI's, or ours in words. samples: steps that it is from. course: (B,) of each block of steps
    for itself, in their order. kelvin, beads: of the runs that it is from. The rest as in `Uncertainty`.
    """

    name: str
    estimate: Estimate
    unit: str
    samples: int
    independent: float
    dependence: float
    wander: float
    course: FloatArray
    kelvin: float
    beads: int | None


@dataclass(frozen=True, slots=True)
class _Function:
    """A number that is made of N means: value (N,) -> itself, and slope (N,) -> (N,) its derivatives."""

    value: Callable[[FloatArray], float]
    slope: Callable[[FloatArray], FloatArray]


_MEAN = _Function(lambda means: float(means[0]), lambda means: np.ones(1))
# of one bead the radius of gyration is 0, and so is all that a slope is multiplied with
_ROOT = _Function(lambda means: float(np.sqrt(means[0])), lambda means: 0.5 / np.sqrt(np.maximum(means, 1e-300)))

_LOG = _Function(lambda means: float(np.log(means[0])), lambda means: 1 / means)
_RATIO = _Function(
    lambda means: float(1e3 * HARTREE * means[0] / means[1]),
    lambda means: 1e3 * HARTREE * np.array([1.0, -means[0] / means[1]]) / means[1],
)


@dataclass(frozen=True, slots=True)
class _Series:
    """What one run has of an observable. steps: (F,). values: (F, N) of what is averaged. members: whether they would
    measure the same in a frame. logs: (F,) of a ratio of averages the logarithm of what each row is yet to be
    multiplied with, which may be too large for a number; None for 1.
    """

    name: str
    unit: str
    members: bool
    steps: IntArray
    values: FloatArray
    function: _Function = _MEAN
    logs: FloatArray | None = None


def properties(runs: Sequence[RunFolder], skip: float = 0.0) -> tuple[list[Observable], list[str]]:
    """Return the averages of all that i-PI wrote in every one of these runs, after `skip` ps, and what there is to say.

    Its properties by their names and in their units. Of the trajectories of kinetic_cv and r_gyration, the quantum
    kinetic energy (meV), in all and along each axis, and the radius of gyration (Å, the root of the mean square) of one
    atom of each of i-PI's names. Of isotope_zetatd and isotope_zetasc the logarithm of the ratio of partition functions
    (Cheng and Ceriotti, J. Chem. Phys. 141, 244112, 2014), of isotope_tdfep and isotope_scfep the kinetic energy with a
    scaled mass (Ceriotti and Markland, J. Chem. Phys. 138, 014112, 2013). The heat capacity at constant volume (J/mol/K
    of the whole system) from scaledcoords (Yamamoto, J. Chem. Phys. 123, 104101, 2005), and of a classical run that
    part of it which is the potential's. Raises ConfigError where there are none, or the runs have different
    temperatures.
    """
    one_state(runs)
    kt = thermal(runs[0])
    found: dict[str, list[_Series]] = {}
    for run in runs:
        first = first_step(run, skip)
        with reading(run.directory, ConfigError, DAMAGED):
            series = list(_series(run, kt))
        longest = max((one.steps for one in series), key=len, default=np.empty(0, dtype=np.int_))
        say_earlier(run, longest[longest >= first])
        for one in series:
            keep = one.steps >= first
            if keep.any():
                logs = None if one.logs is None else one.logs[keep]
                one = replace(one, steps=one.steps[keep], values=one.values[keep], logs=logs)
                found.setdefault(one.name, []).append(one)
    # an average over some of the runs beside one over all could not be compared
    whole = {name: pieces for name, pieces in found.items() if len(pieces) == len(runs)}
    if not whole:
        raise ConfigError(
            f"there are no properties to average in {runs[0].directory}"
            + (f" after {skip:g} ps" if skip else "")
            + (" that all of these runs have" if len(runs) > 1 else ""),
            "have it write <properties stride='1' filename='out'> [ step, temperature{kelvin} ] </properties>",
        )
    said = [f"{name} is not in every run, and is left out" for name in found if name not in whole]
    if any(run.about.get("biased") for run in runs):
        said.append("a bias acts in these runs, and averages are those under it; free-energy takes a bias away")
    swings = [name for name in runs[0].properties if name.startswith("scaledcoords")]
    if runs[0].about.get("beads") == 1 and "potential" in runs[0].properties:
        swings.append("potential")
    if swings and not all(map(_canonical, runs)):
        said.append(
            "no heat capacity: it is not known that these runs are at constant volume and temperature, unbiased"
        )
    lost = sum(
        int((~_converged(run, name)).sum())
        for run in runs
        for name in run.properties
        if name.startswith("scaledcoords") and name.endswith("[0]")
    )
    if lost:
        said.append(
            f"at {lost} steps i-PI's scaledcoords did not converge (it writes 0 there), and the heat capacity is "
            "without them: serve in float64, or give it a fixed step, scaledcoords(fd_delta=1e-3)"
        )
    committees = []
    for run in runs:
        with reading(run.directory, ConfigError, DAMAGED):
            committees.append(read_committee(run))
    observables = []
    for name, pieces in whole.items():
        one_of(f"units of {name}", {one.unit for one in pieces})
        told = [weighed(one.steps, of, kt) for one, of in zip(pieces, committees, strict=True)]
        said += [f"no committee's error: {gap}" for _, gap in told if gap]
        energies = [known for known, _ in told] if pieces[0].members else []
        of_energies_and_steps(energies, [one.steps for one in pieces])
        kelvin, beads = float(runs[0].about["temperature_K"]), runs[0].about.get("beads")
        observables.append(_observable(pieces, energies, kelvin, beads))
    return observables, list(dict.fromkeys(said))


def _observable(
    pieces: Sequence[_Series], energies: Sequence[FloatArray | None], kelvin: float, beads: int | None
) -> Observable:
    one, values = pieces[0], _multiplied(pieces)
    errors = uncertainty(values, energies, lambda means: one.function.slope(means)[None])
    # of the mean over all runs: a variance of means is not the mean of variances
    value = one.function.value(np.concatenate(values).mean(axis=0))
    estimate = estimates(np.array([value]), errors)[0]
    return Observable(
        one.name,
        estimate,
        one.unit,
        errors.samples,
        float(errors.independent[0]),
        float(errors.dependence[0]),
        errors.wander,
        np.array([one.function.value(block.mean(axis=0)) for cut in blocks_of(values) for block in cut]),
        kelvin,
        beads,
    )


def _multiplied(pieces: Sequence[_Series]) -> list[FloatArray]:
    """(F, N) of each piece, with one factor for all: the largest exponential of all rows is 1, or weights of one run
    could not be compared with those of another.
    """
    logs = [np.zeros(len(one.steps)) if one.logs is None else one.logs for one in pieces]
    top = max(one.max() for one in logs)
    return [one.values * np.exp(of - top)[:, None] for one, of in zip(pieces, logs, strict=True)]


def differences(here: Sequence[Observable], there: Sequence[Observable]) -> list[Observable]:
    """Return each average of `here` less that of `there`, where both have it in one unit: of two phases, say.

    The simulations know nothing of each other, the members of a committee are the same in both: that part of the error
    is not known. Raises ConfigError where temperatures or numbers of beads differ, or they have nothing in common.
    """
    one_of("temperatures, K", {one.kelvin for one in (*here, *there)})
    one_of("numbers of beads", {one.beads for one in (*here, *there)})
    others = {(one.name, one.unit): one for one in there}
    found = []
    for one in here:
        if (other := others.get((one.name, one.unit))) is not None:
            statistical = float(np.hypot(one.estimate.statistical, other.estimate.statistical))
            estimate = Estimate(one.estimate.value - other.estimate.value, statistical, None, statistical)
            found.append(replace(one, estimate=estimate, course=one.course - other.estimate.value))
    if not found:
        raise ConfigError("these runs and those to compare them with have no average in common", "have i-PI write both")
    return found


def _series(run: RunFolder, kt: float) -> Iterator[_Series]:
    """All that this run has."""
    for name, series in run.properties.items():
        base = name.partition("(")[0].partition("[")[0]
        # scaledcoords and the like are no observables by themselves: these are made of their columns
        if base not in (*_CLOCK, "scaledcoords", *_ISOTOPES, *_SCALED_MASS):
            yield _Series(name, series.unit, base in _OF_MEMBERS, series.steps.astype(np.int_), series.values[:, None])
    yield from _heat_capacities(run, kt)
    yield from _isotopes(run)
    for name, steps, values in _of_atoms(run, "kinetic_cv"):
        # the three components add up to the energy of an atom; meV
        energies = 1e3 * HARTREE * values.sum(axis=2).mean(axis=1, keepdims=True)
        yield _Series(f"quantum kinetic energy of one {name}", "meV", False, steps, energies)
        for axis, part in zip("xyz", np.moveaxis(values, 2, 0), strict=True):
            # along the axes of the cell: of ice or a surface they differ
            of_axis = 1e3 * HARTREE * part.mean(axis=1, keepdims=True)
            yield _Series(f"quantum kinetic energy of one {name}, {axis}", "meV", False, steps, of_axis)
    for name, steps, values in _of_atoms(run, "r_gyration"):
        # i-PI writes a vector for each atom; the radius is the root of its mean square length
        squares = BOHR**2 * (values**2).sum(axis=2).mean(axis=1, keepdims=True)
        yield _Series(f"radius of gyration of one {name}", "Å", True, steps, squares, _ROOT)


def _of_atoms(run: RunFolder, quantity: str) -> Iterator[tuple[str, IntArray, FloatArray]]:
    """Of a trajectory: by i-PI's names (D is not H) the name, the steps (F,) and the values (F, atoms of it, 3)."""
    trajectory = find_trajectory(run.files, quantity)
    frames: dict[int, FloatArray] = {}
    names: NDArray[np.str_] = np.empty(0, dtype=np.str_)
    for step, _, named, vectors in trajectory.vectors() if trajectory else ():
        names = named
        write_down(frames, step, vectors)
    if frames:
        steps, values = np.array(list(frames)), np.array(list(frames.values()))
        for name in np.unique(names):
            yield str(name), steps, values[:, names == name]


def _isotopes(run: RunFolder) -> Iterator[_Series]:
    """ln of the partition functions' ratio, of a heavier isotope to this one less what it is classically, and the
    kinetic energy that the heavier one would have.
    """
    for name, series in run.properties.items():
        whole, base = name.rpartition("[")[0], name.partition("(")[0].partition("[")[0]
        steps = series.steps.astype(np.int_)
        if base in _ISOTOPES and name.endswith("[2]"):
            # that by the springs depends on positions alone
            yield _Series(f"ln {whole}", "", base == "isotope_zetatd", steps, series.values[:, None], _LOG)
        if base in _SCALED_MASS and name.endswith("[4]"):
            weight, energy, sign = (run.properties[f"{whole}[{column}]"].values for column in (4, 5, 6))
            columns = np.stack([sign * np.exp(energy - weight), np.ones(len(weight))], axis=1)
            yield _Series(f"kinetic energy by {whole}", "meV", False, steps, columns, _RATIO, weight)


def _canonical(run: RunFolder) -> bool:
    """Whether it is known that volume and temperature are held, and that no bias acts."""
    return set(run.about.get("motions") or ()) == {"nvt"} and not run.about.get("biased")


def _converged(run: RunFolder, name: str) -> NDArray[np.bool_]:
    """(F,) where i-PI's finite difference of scaled coordinates, columns [0] and [1], has converged: both are 0 where
    it has not, as with the rounding of float32."""
    return np.asarray((run.properties[name].values != 0) | (run.properties[f"{name[:-3]}[1]"].values != 0))


def _heat_capacities(run: RunFolder, kt: float) -> Iterator[_Series]:
    """C/k = (<ε²> - <ε>² - <ε'>) / (kT)², and of a classical run the variance of its potential over (kT)².

    In the canonical ensemble alone: at constant energy the kinetic energy swings against the potential's, and under a
    barostat the volume swings.
    """
    if not _canonical(run):
        return
    scale = _GAS_CONSTANT / kt**2
    variance = _Function(
        lambda means: float(scale * (means[1] - means[0] ** 2)), lambda means: scale * np.array([-2 * means[0], 1.0])
    )
    for name, series in run.properties.items():
        if name.startswith("scaledcoords") and name.endswith("[0]"):
            prime, there = run.properties[f"{name[:-3]}[1]"].values, _converged(run, name)
            columns = np.stack([series.values, series.values**2 - prime], axis=1)[there]
            steps = series.steps.astype(np.int_)[there]
            yield _Series("heat capacity", "J/mol/K", False, steps, columns, variance)
    potential = run.properties.get("potential")
    # of a ring polymer the variance of the potential is no heat capacity
    if potential is not None and run.about.get("beads") == 1:
        unit = "atomic_unit" if potential.unit == "atomic units" else potential.unit
        energy = potential.values * float(unit_to_internal("energy", unit, 1.0))
        columns = np.stack([energy, energy**2], axis=1)
        name = "heat capacity less its kinetic part"
        yield _Series(name, "J/mol/K", False, potential.steps.astype(np.int_), columns, variance)
