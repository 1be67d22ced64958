"""Differences of free energy by thermodynamic integration, between two potentials and between isotopes.

Of a potential that depends on λ the derivative is dF/dλ = <∂V/∂λ>; between two that are mixed, (1 - λ) A + λ B, it is
<B - A>, of a ring polymer its mean over the beads. Of a mass μ it is dF/dμ = -(<T> - 3/2 kT) / μ for each atom, F less
what it is classically; over y = 1/√μ the integrand 2 (<T> - 3/2 kT) / y is smooth, and 0 at y = 0, which is the
classical limit (Ceriotti and Markland, J. Chem. Phys. 138, 014112, 2013).

The integral is that of a cubic spline through the points, so it is a sum of averages with weights and has their errors.
Where λ mixes two potentials MBAR joins the same frames, without a rule of integration.

A member's F is to first order F + <V_m - V> (`analyse.free_energy`), so that a member's difference is the one that was
measured, plus what its energy is above the mean's at the last point, less the same at the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ipi.engine.properties import getall
from ipi.utils.units import unit_to_internal
from scipy.integrate import trapezoid
from scipy.interpolate import CubicSpline

from beadwork.analyse.biased import joined
from beadwork.analyse.free_energy import Estimate, estimates
from beadwork.analyse.runs import DAMAGED, first_step, one_of, one_state, say_earlier, thermal, weighed
from beadwork.disk import reading
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray, IntArray
from beadwork.report.committee import read_committee
from beadwork.report.radial import deviations, offsets
from beadwork.report.run import RunFolder
from beadwork.report.uncertainty import uncertainty
from beadwork.units import KJ_MOL

#: by i-PI's names of properties, the order of arguments that are given without their own
_ARGUMENTS = {"pot_component_raw": ("index", "bead")}
#: a weight is λ within this
WEIGHT = 1e-3
#: i-PI's quantum kinetic energies
_KINETIC = ("kinetic_cv", "kinetic_td", "kinetic_prsc", "kinetic_tdsc", "kinetic_opsc")


@dataclass(frozen=True, slots=True)
class Integral:
    """A difference of free energy, F at the last point less F at the first.

    along: what was integrated over, in words. x: (K,) the points in order. integrand: at each, kJ/mol. total: kJ/mol.
    trapezoidal: kJ/mol, what the trapezoidal rule makes of the same points: far from the total there are too few. mbar:
    kJ/mol, by MBAR; None between masses. words: of MBAR, how far neighbours share their frames. gap: why total
    and mbar have no committee's error; '' where they have. wander: as in `Uncertainty`.
    """

    along: str
    x: FloatArray
    integrand: list[Estimate]
    total: Estimate
    trapezoidal: float
    mbar: Estimate | None = None
    words: str = ""
    gap: str = ""
    wander: float = 0.0


def between_potentials(
    runs: Sequence[RunFolder], at: Sequence[float], of: str, less: str | None = None, skip: float = 0.0
) -> Integral:
    """Integrate over λ, of which each run has that in `at`; runs at one λ are pieces of one kind.

    of, less: i-PI's names of properties whose difference is ∂V/∂λ, such as `pot_component_raw(1)`. skip: ps at the
    beginning of each run. Raises ConfigError where they were not written or have their weight, or for fewer than two λ.
    """
    for name in filter(None, (of, less)):
        if _asked(name)[0] == "pot_component":
            raise ConfigError(
                f"i-PI multiplies {name} by the weight of its force, so it is λ ∂V/∂λ instead of ∂V/∂λ",
                f"have i-PI write {name.replace('pot_component', 'pot_component_raw')}, which is without the weight, "
                "and give that",
            )
    kt = thermal(runs[0]) * KJ_MOL
    series = [_derivative(run, of, less, skip) for run in runs]
    x, which = _points(runs, at)
    _check_weights(runs, at, of, less)
    totals = _averages([KJ_MOL * one for one in series], which)
    found = _with_members(_integral("λ", x, totals), runs, which, skip)
    lambdas = joined(
        [np.outer(KJ_MOL * one / kt, x) for one in series], which.tolist(), [f"λ = {place:g}" for place in x]
    )
    value, error = lambdas.difference()
    return replace(found, mbar=_estimate(kt * value, kt * error, found.total.committee), words=lambdas.words)


def between_masses(
    runs: Sequence[RunFolder],
    masses: Sequence[float],
    of: str = "kinetic_cv",
    classical: bool = False,
    skip: float = 0.0,
) -> Integral:
    """Integrate over the mass of atoms, of which each run has that in `masses`, in any unit.

    of: i-PI's property of their kinetic energy, `kinetic_cv(H)` of one label or kinetic_cv of all atoms, whose masses
    are then all scaled by what is in `masses`. classical: go on to the classical limit, of infinite mass. What there is
    classically is left out. Raises ConfigError where it was not written or is another property, or for fewer than two
    points.
    """
    if _asked(of)[0] not in _KINETIC:
        raise ConfigError(
            f"{of} is no quantum kinetic energy, of which dF/dμ is made", f"give one of {', '.join(_KINETIC)}"
        )
    kt = thermal(runs[0]) * KJ_MOL
    if any(not mass > 0 for mass in masses):
        raise ConfigError(f"a mass of {min(masses):g} is none", "give --masses above 0")
    series = [KJ_MOL * _derivative(run, of, None, skip) - 1.5 * kt * _atoms(run, of) for run in runs]
    y, which = _points(runs, [-(mass**-0.5) for mass in masses], 1 - classical)
    _check_masses(runs, masses, of)
    totals = _averages([2 * one / y[place] for one, place in zip(series, which, strict=True)], which)
    if classical:
        y, totals = np.append(y, 0.0), [*totals, Estimate(0.0, 0.0, None, 0.0)]
        return replace(_integral("-1/√mass", y, totals), gap="no run is in the classical limit")
    return _with_members(_integral("-1/√mass", y, totals), runs, which, skip)


def _with_members(found: Integral, runs: Sequence[RunFolder], which: IntArray, skip: float) -> Integral:
    """Give the total the committee's error, by the members' energies at both ends, or the reason why it has none."""
    ends, wander = [], 0.0
    for place in (0, which.max()):
        told = [_energies(run, skip) for run, of in zip(runs, which, strict=True) if of == place]
        if gap := next((why for _, why in told if why), ""):
            return replace(found, gap=gap)
        energies = [one for one, _ in told if one is not None]
        one_of("numbers of members", {one.shape[1] for one in energies})
        ends.append(np.concatenate(energies))
        wander = max(wander, float(deviations(ends[-1], 1.0).std(axis=0).max()))
    if (widths := {end.shape[1] for end in ends} - {1}) == set():
        return replace(found, gap="the members have no part in the potential")
    one_of("numbers of members", widths)
    apart = thermal(runs[0]) * KJ_MOL * (offsets(ends[1]) - offsets(ends[0]))
    total = _estimate(found.total.value, found.total.statistical, float(apart.std(ddof=1)))
    return replace(found, total=total, wander=wander)


def _energies(run: RunFolder, skip: float) -> tuple[FloatArray | None, str]:
    """(F, M) the members' energies as they are in the potential, kT, or none and why; (1, 1) where they have no part
    in it."""
    if run.about.get("committee_share") == 0:
        return np.zeros((1, 1)), ""
    with reading(run.directory, ConfigError, DAMAGED):
        potentials = read_committee(run)
    first = first_step(run, skip)
    steps = [] if isinstance(potentials, str) else [step for step in potentials.by_step if step >= first]
    return weighed(np.array(steps, dtype=np.int_), potentials, thermal(run))


def _estimate(value: float, statistical: float, committee: float | None) -> Estimate:
    return Estimate(value, statistical, committee, float(np.hypot(statistical, committee or 0.0)))


def _derivative(run: RunFolder, of: str, less: str | None, skip: float) -> FloatArray:
    """(F,) Hartree, of steps that have both properties."""
    found: list[dict[int, float]] = []
    for name in filter(None, (of, less)):
        series = run.properties.get(name.replace(" ", ""))
        if series is None:
            there = ", ".join(run.properties) or "none"
            raise ConfigError(f"i-PI wrote no property {name} into {run.directory}", f"it wrote: {there}")
        unit = "atomic_unit" if series.unit == "atomic units" else series.unit
        steps: IntArray = series.steps.astype(np.int_)
        rows = steps >= first_step(run, skip)
        scale = float(unit_to_internal("energy", unit, 1.0)) * _missing_beads(run, name)
        values = scale * series.values[rows]
        found.append(dict(zip(steps[rows].tolist(), values.tolist(), strict=True)))
    steps_of_all = sorted(set.intersection(*map(set, found)))
    say_earlier(run, np.array(steps_of_all, dtype=np.int_))
    if not steps_of_all:
        raise ConfigError(f"{run.directory} has no {of} after {skip:g} ps", "leave out less with --skip")
    return np.array([found[0][step] - (found[1][step] if less else 0.0) for step in steps_of_all])


def _missing_beads(run: RunFolder, of: str) -> float:
    """By what a component's energy is to be multiplied: i-PI divides `pot_component_raw`, a sum over the beads that a
    contracted <force> has, by the number that the system has."""
    beads = _of_component(run, of, "component_beads")
    # of one bead alone it is that bead's energy; -1 is all of them
    one = not _asked(of)[1].get("bead", "-1").startswith("-")
    return 1.0 if beads is None or one else float(run.about["beads"] / beads)


def _check_weights(runs: Sequence[RunFolder], at: Sequence[float], of: str, less: str | None) -> None:
    """Raise ConfigError where the weights in the runs' inputs are not those of ∂V/∂λ = of - less: λ of the one, 1 - λ
    of the other, and of any other force the same in all runs."""
    for run, place in zip(runs, at, strict=True):
        weight = _of_component(run, of, "component_weights")
        if weight is not None and abs(weight - place) > WEIGHT:
            raise ConfigError(
                f"the force of {of} has the weight {weight:g} in the run of {run.directory}, and its λ is {place:g}",
                "give --lambdas one for each run, in their order",
            )
        weight = _of_component(run, less, "component_weights") if less else None
        if weight is not None and abs(weight - (1 - place)) > WEIGHT:
            raise ConfigError(
                f"the force of {less} has the weight {weight:g} in the run of {run.directory}, where λ is {place:g}: "
                "it is taken off ∂V/∂λ only where its weight is 1 - λ",
                "leave --less out, or name the force whose weight is 1 - λ",
            )
    told = [run.about.get("component_weights") or [] for run in runs]
    if not all(told) or len({len(one) for one in told}) > 1:
        return  # of an older run nothing is known
    known = {_index(name) for name in (of, less) if name}
    if None in known:
        return  # it is no force's own energy
    for number, weights in enumerate(zip(*told, strict=True)):
        if number not in known and np.ptp(weights) > WEIGHT:
            raise ConfigError(
                f"the weight of force {number} goes from {min(weights):g} to {max(weights):g} over these runs too, so "
                f"∂V/∂λ is not {of}{f' - {less}' if less else ''} alone",
                f"give --less pot_component_raw({number}) where that weight is 1 - λ",
            )


def _check_masses(runs: Sequence[RunFolder], masses: Sequence[float], of: str) -> None:
    """Raise ConfigError where the masses in the runs' inputs are not in the proportion of these."""
    label = _asked(of)[1].get("atom")
    for name in [label] if label else runs[0].labels:
        told = [(run.about.get("masses") or {}).get(name) for run in runs]
        ratios = np.array([one / mass for one, mass in zip(told, masses, strict=True) if one is not None])
        # of an older run, and of an atom by its number, nothing is known
        if len(ratios) == len(runs) and np.ptp(ratios) > 1e-3 * ratios.max():
            listed = ", ".join(f"{one:g}" for one in told)
            raise ConfigError(
                f"atoms called {name} have the masses {listed} dalton in these runs, and those given are "
                f"{', '.join(f'{mass:g}' for mass in masses)}",
                "give --masses one for each run, in their order",
            )


def _of_component(run: RunFolder, of: str, what: str) -> float | None:
    """What the record says of the <force> of `pot_component_raw(K)`; None of another property, and of an older run."""
    index, known = _index(of), run.about.get(what) or ()
    return float(known[index]) if index is not None and index < len(known) else None


def _index(of: str) -> int | None:
    """K of `pot_component_raw(K)`; None of another property."""
    name, arguments = _asked(of)
    index = arguments.get("index", "") if name == "pot_component_raw" else ""
    return int(index) if index.isdecimal() else None


def _asked(of: str) -> tuple[str, dict[str, str]]:
    """The name of a property and its arguments by theirs: those of kinetic_cv(H) and kinetic_cv(atom=H) are the same.

    Raises ConfigError for what i-PI does not understand.
    """
    try:
        name, _, given, named = getall(of)
    except ValueError as error:
        raise ConfigError(f"{of} is no property of i-PI's ({error})", "write it as in i-PI's input") from error
    return name, dict(zip(_ARGUMENTS.get(name, ("atom",)), given, strict=False)) | named


def _atoms(run: RunFolder, of: str) -> int:
    """How many atoms a property is of."""
    label = _asked(of)[1].get("atom", "")
    if label.isdecimal():
        return 1
    count = run.labels.get(label, 0) if label else sum(run.labels.values())
    if not count:
        raise ConfigError(
            f"it is not known how many atoms {of} of {run.directory} is of", "ask for an element, as kinetic_cv(H)"
        )
    return count


def _points(runs: Sequence[RunFolder], at: Sequence[float], least: int = 2) -> tuple[FloatArray, IntArray]:
    """The different places in order, and of each run the place that it is at."""
    one_state(runs)
    if len(at) != len(runs):
        raise ConfigError(f"there are {len(at)} places for {len(runs)} runs", "give one for each run, in order")
    x, which = np.unique(np.array(at, dtype=np.float64), return_inverse=True)
    if len(x) < least:
        raise ConfigError(f"all runs are at one place, {x[0]:g}", "integrate over two at least")
    return x, which.astype(np.int_)


def _averages(series: Sequence[FloatArray], which: IntArray) -> list[Estimate]:
    """Of each place."""
    found = []
    for place in range(which.max() + 1):
        pieces = [one[:, None] for one, of in zip(series, which, strict=True) if of == place]
        found += estimates(np.concatenate(pieces).mean(axis=0), uncertainty(pieces))
    return found


def _integral(along: str, x: FloatArray, integrand: list[Estimate]) -> Integral:
    # of a rule that is linear in the values, what each of them counts
    weights = CubicSpline(x, np.eye(len(x))).integrate(x[0], x[-1])
    values = np.array([one.value for one in integrand])
    error = float(np.linalg.norm(weights * np.array([one.statistical for one in integrand])))
    total = _estimate(float(weights @ values), error, None)
    return Integral(along, x, integrand, total, float(trapezoid(values, x)))
