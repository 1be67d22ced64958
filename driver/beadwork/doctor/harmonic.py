"""What a ring polymer gives for harmonic vibrations: beads, springs, time step, contraction and colored noise.

    modes = Modes(omega2, delta2, {"H": of_h, "O": of_o}, {"H": 64, "O": 32})
    errors(modes, Plan(beads=16, timestep=0.5), temperature=300)  # {"kinetic H": -0.021, ...}

For a harmonic vibration every step of i-PI's integrator is linear: with z = (q, p, momenta of the colored noise) of one
mode of the ring polymer, z -> M z + noise. So its averages with a finite time step, multiple time steps and a Langevin
thermostat are the solution X of X = M X M' + N, and no formula is needed beyond the step itself. Vibrations are those
of the user's models, and their quantum averages are known exactly.

Energies in eV, times in fs, frequencies squared (omega2) in 1/fs², of a potential as it acts on coordinates times the
root of the mass. A negative omega2 is an instantaneous mode that is no minimum: averages continue analytically, since
kinetic energies and mean squared forces of a liquid are averages over curvatures of both signs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from ipi.utils.nmtransform import eco_eva, nm_eva

from beadwork.errors import SimulationError
from beadwork.frame import FloatArray

#: eV fs and eV/K
HBAR, BOLTZMANN = 0.6582119569, 8.617333262e-5
#: 1/fs of one cm^-1 (2 pi c)
WAVENUMBER = 2 * np.pi * 2.99792458e-5
#: fs; relaxation time of the centroid, in the lines for an input that has none. Averages do not depend on it
CENTROID_TAU = 100.0
#: of X = M X M' + N, solved by doubling: 2^60 steps
_DOUBLINGS = 60
#: 1/fs²; a curvature below it (0.005 cm^-1) is none
_NOTHING = 1e-12
#: vibrations after `compress`
_BINS = 64


@dataclass(frozen=True, slots=True)
class ColoredNoise:
    """The matrices of an `nm_gle` thermostat (PIGLET), one for each mode of the ring polymer.

    drift: (P, n, n) 1/fs. covariance: (P, n, n) eV. The first row and column are the momentum's.
    """

    drift: FloatArray
    covariance: FloatArray


@dataclass(frozen=True, slots=True)
class Plan:
    """How a simulation is run.

    springs: ordinary, eco (economised up to `highest` cm^-1) or piglet (ordinary, with `noise`). timestep: fs, of the
    baseline. inner: steps of the baseline in one of Δ. contracted: beads of Δ, 0 for all. cayley: how the springs are
    propagated. splitting: where the thermostat stands in a step, `baoab` or `obabo`, which is i-PI's default.
    """

    beads: int
    timestep: float
    springs: str = "ordinary"
    inner: int = 1
    contracted: int = 0
    cayley: bool = False
    highest: float = 0.0
    splitting: str = "baoab"
    noise: ColoredNoise | None = field(default=None, compare=False)

    @property
    def outer(self) -> float:
        """fs, i-PI's own step: that of Δ."""
        return self.timestep * self.inner

    @property
    def harmonic_only(self) -> bool:
        """Whether it is made for harmonic vibrations: the rest of its error does not go away with more beads or shorter
        steps, so nothing bounds it."""
        return self.springs == "piglet"

    @property
    def delta_beads(self) -> int:
        """Beads on which Δ is evaluated."""
        return self.contracted or self.beads

    @property
    def apart(self) -> bool:
        """Whether Δ needs a forcefield of its own."""
        return self.inner > 1 or self.delta_beads < self.beads


@dataclass(frozen=True, slots=True)
class Modes:
    """Vibrations of a structure, or a sample of them.

    omega2: (J,) of baseline and Δ together. delta2: (J,) the part of Δ in it. weights: by element, (J,), how much of
    its atoms' motion is in each vibration; each sums to 1. counts: atoms by element. most: 1/fs², the largest
    eigenvalue of Δ alone, of either sign: in a liquid that of one molecule, and several times what any vibration has.
    """

    omega2: FloatArray
    delta2: FloatArray
    weights: Mapping[str, FloatArray]
    counts: Mapping[str, int]
    most: float = 0.0

    @property
    def highest(self) -> float:
        """cm^-1."""
        return float(np.sqrt(max(self.omega2.max(), 0.0))) / WAVENUMBER

    @property
    def share(self) -> FloatArray:
        """(J,) of all atoms together."""
        total = sum(self.counts.values())
        return sum((n / total * self.weights[symbol] for symbol, n in self.counts.items()), np.zeros(len(self.omega2)))


def compress(modes: Modes, bins: int = _BINS) -> Modes:
    """The same with vibrations of about one frequency put together."""
    if len(modes.omega2) <= bins:
        return modes
    root = np.sign(modes.omega2) * np.sqrt(np.abs(modes.omega2))
    edges = np.linspace(root.min(), root.max(), bins + 1)
    index = np.clip(np.searchsorted(edges, root, side="right") - 1, 0, bins - 1)
    share = modes.share
    total = np.bincount(index, share, bins)
    there = total > 0

    def mean(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(index, share * values, bins)[there] / total[there])

    weights = {
        symbol: np.asarray(np.bincount(index, w, bins)[there], dtype=np.float64) for symbol, w in modes.weights.items()
    }
    return Modes(mean(modes.omega2), mean(modes.delta2), weights, modes.counts, modes.most)


def springs(plan: Plan, temperature: float) -> FloatArray:
    """(P,) 1/fs: frequencies of the free ring polymer, as i-PI has them; the centroid's first."""
    per_bead = plan.beads * BOLTZMANN * temperature / HBAR
    if plan.springs == "eco":
        return per_bead * _economised(plan.beads, plan.highest * WAVENUMBER * plan.beads / per_bead)
    return np.asarray(per_bead * nm_eva(plan.beads))


@cache
def _economised(beads: int, highest: float) -> FloatArray:
    return np.asarray(eco_eva(beads, highest))  # a fit, of seconds with many beads


def kept(beads: int, contracted: int) -> FloatArray:
    """(P,) 1 for each mode of the ring polymer that a contraction to so many beads keeps, else 0 (as i-PI has it)."""
    keep = np.zeros(beads)
    keep[0] = 1
    for k in range(1, contracted // 2 + 1):
        keep[[k, -k]] = 1
    if contracted % 2 == 0 and contracted < beads:
        keep[-(contracted // 2)] = 0  # the stiffest mode of an even ring is single
    return keep


def without_barriers(modes: Modes, temperature: float) -> tuple[Modes, list[float]]:
    """The vibrations without those of so negative a curvature that no average continues to it; and these, as i cm^-1.

    Raises SimulationError where they are half of an element's motion or more.
    """
    bounded = modes.omega2 > -((0.9 * 2 * np.pi * BOLTZMANN * temperature / HBAR) ** 2)
    rest = {symbol: float(weight[bounded].sum()) for symbol, weight in modes.weights.items()}
    barriers = np.sqrt(-modes.omega2[~bounded]) / WAVENUMBER
    if min(rest.values()) <= 0.5:
        raise SimulationError(
            f"the structure has curvatures of up to {barriers.max():.0f}i cm^-1 in most directions, and nothing "
            f"harmonic holds for them at {temperature:g} K",
            "give a structure from a run, in <initialize> or as its RESTART",
        )
    weights = {symbol: weight[bounded] / rest[symbol] for symbol, weight in modes.weights.items()}
    rest_of = Modes(modes.omega2[bounded], modes.delta2[bounded], weights, modes.counts, modes.most)
    return rest_of, sorted(barriers.tolist())


def quantum(omega2: FloatArray, temperature: float) -> FloatArray:
    """(J,) eV: the exact kinetic energy of each vibration, which is its potential energy too.

    For curvatures that `without_barriers` leaves.
    """
    half = HBAR * np.sqrt(omega2.astype(complex)) / (2 * BOLTZMANN * temperature)
    small = np.abs(half) < 1e-4
    safe = np.where(small, 1.0, half)
    return np.asarray(BOLTZMANN * temperature / 2 * np.where(small, 1.0, safe / np.tanh(safe)).real)


def averages(modes: Modes, plan: Plan, temperature: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Kinetic energy (centroid virial), potential energy and squared force of each vibration, (J,) each; eV and eV/fs².

    NaN where the integrator is not stable.
    """
    kt = BOLTZMANN * temperature
    # degenerate modes of the ring polymer are computed once; colored noise has matrices for each
    alike = Counter(
        (round(float(w), 12), float(c), 0 if plan.noise is None else k)
        for k, (w, c) in enumerate(zip(springs(plan, temperature), kept(plan.beads, plan.delta_beads), strict=True))
        if k
    )
    baseline = modes.omega2 - modes.delta2
    kinetic = np.full(len(modes.omega2), kt / 2)
    # a soft or inverted centroid has the classical average, and the time step's error of |omega2|
    sign = np.where(np.abs(modes.omega2) < _NOTHING, 0.0, np.sign(modes.omega2))
    square = _variance(plan, temperature, 0.0, sign * baseline, sign * modes.delta2, 0)
    # what has no force is no vibration, and its q² grows for ever
    ratio = np.where(sign == 0, 1.0, square * np.abs(modes.omega2) / (plan.beads * kt))
    potential, force = kt / 2 * ratio, modes.omega2 * kt * ratio
    for (spring, keeps, mode), count in alike.items():
        omega2 = baseline + keeps * modes.delta2
        square = _variance(plan, temperature, spring, baseline, keeps * modes.delta2, mode) / plan.beads
        kinetic = kinetic + count * omega2 * square / 2
        potential = potential + count * omega2 * square / 2
        force = force + count * omega2**2 * square
    return kinetic, potential, force


def errors(modes: Modes, plan: Plan, temperature: float) -> dict[str, float]:
    """Relative errors: `kinetic X` and `force X` (its mean square) for each element, and `potential`.

    The potential is counted from its minimum. NaN where the integrator is not stable.
    """
    exact = quantum(modes.omega2, temperature)
    kinetic, potential, force = averages(modes, plan, temperature)
    found = {f"kinetic {symbol}": float(w @ kinetic / (w @ exact) - 1) for symbol, w in modes.weights.items()}
    for symbol, w in modes.weights.items():
        true = 2 * w @ (modes.omega2 * exact)
        # atoms without any force, alone in vacuum, have none with any number of beads
        found[f"force {symbol}"] = float(w @ force / true - 1) if true else 0.0
    found["potential"] = float(modes.share @ potential / (modes.share @ exact) - 1)
    return found


def stable(plan: Plan, temperature: float, highest: float, most: float) -> bool:
    """Whether no vibration up to `highest` cm^-1 is driven by the time step, with up to `most` (1/fs²) of Δ in it."""
    omega2 = (np.linspace(0.02, 1, 150) * highest * WAVENUMBER) ** 2
    for delta in {0.0, most, -most} if plan.inner > 1 else {0.0}:
        modes = Modes(omega2, np.minimum(delta, omega2), {"": np.full(150, 1 / 150)}, {"": 1})
        kinetic, potential, _ = averages(modes, plan, temperature)
        if not (np.isfinite(kinetic).all() and (potential < 1.5 * quantum(omega2, temperature)).all()):
            return False
    return True


def _variance(
    plan: Plan, temperature: float, spring: float, baseline: FloatArray, delta: FloatArray, mode: int
) -> FloatArray:
    """(J,) eV fs²: the mean of q² of one mode of the ring polymer at the ends of steps; NaN where it grows."""
    moved, noise = _step(plan, temperature, spring, baseline, delta, mode)
    # what is left of M after 2^n steps tells whether they end anywhere; numbers that grow without end are meant
    with np.errstate(all="ignore"):
        for _ in range(_DOUBLINGS):
            noise = noise + moved @ noise @ np.swapaxes(moved, 1, 2)
            moved = moved @ moved
            if not (np.abs(moved) > 1e-15).any():
                break
        lost = ~(np.abs(moved).max(axis=(1, 2)) < 1e-6) | ~np.isfinite(noise).all(axis=(1, 2))
    return np.where(lost, np.nan, noise[:, 0, 0])


def _step(
    plan: Plan, temperature: float, spring: float, baseline: FloatArray, delta: FloatArray, mode: int
) -> tuple[FloatArray, FloatArray]:
    """M (J, n, n) and the covariance of the noise of one step, as i-PI splits it with multiple time steps."""
    size = 2 if plan.noise is None else 1 + plan.noise.drift.shape[1]
    one = np.broadcast_to(np.eye(size), (len(baseline), size, size))

    def kick(curvature: FloatArray, time: float) -> FloatArray:
        matrix = one.copy()
        matrix[:, 1, 0] = -curvature * time
        return matrix

    half = plan.timestep / 2
    drift = one.copy()
    drift[:, :2, :2] = _free(spring, half, plan.cayley)
    if plan.inner == 1:
        first = drift @ kick(baseline + delta, half)
        last = kick(baseline + delta, half) @ drift
    else:
        whole = kick(baseline, half) @ drift @ drift @ kick(baseline, half)
        inner = np.linalg.matrix_power(whole, plan.inner // 2)
        first, last = inner @ kick(delta, plan.outer / 2), kick(delta, plan.outer / 2) @ inner
        if plan.inner % 2:
            first = drift @ kick(baseline, half) @ first
            last = last @ kick(baseline, half) @ drift
    around = plan.splitting == "obabo"
    damp, noise = _thermostat(plan, temperature, spring, mode, plan.outer / 2 if around else plan.outer)
    if around:
        moved = damp @ last @ first
        return moved @ damp, moved @ noise @ np.swapaxes(moved, 1, 2) + noise
    return last @ damp @ first, last @ noise @ np.swapaxes(last, 1, 2)


def _free(spring: float, time: float, cayley: bool) -> FloatArray:
    """The free ring polymer's motion: exact, or by Cayley's transform (Korol et al., J. Chem. Phys. 151, 124103)."""
    if spring == 0:
        return np.array([[1.0, time], [0.0, 1.0]])
    if cayley:
        square = (spring * time / 2) ** 2
        return np.array([[1 - square, time], [-4 * square / time, 1 - square]]) / (1 + square)
    c, s = np.cos(spring * time), np.sin(spring * time)
    return np.array([[c, s / spring], [-s * spring, c]])


def _thermostat(plan: Plan, temperature: float, spring: float, mode: int, time: float) -> tuple[FloatArray, FloatArray]:
    """What the thermostat makes of z in some time, and the covariance of its noise.

    Without colored noise it is PILE: friction of 2 x spring, and 1 / CENTROID_TAU on the centroid. With white noise the
    averages are the same for every friction, since a step reads the same backwards.
    """
    if plan.noise is None:
        friction = 2 * spring if spring else 1 / CENTROID_TAU
        drift, covariance = np.array([[friction]]), np.array([[plan.beads * BOLTZMANN * temperature]])
    else:
        drift, covariance = plan.noise.drift[mode], plan.noise.covariance[mode]
    size = 1 + len(drift)
    damp, noise = np.eye(size), np.zeros((size, size))
    decay = _exponential(-drift * time)
    damp[1:, 1:] = decay
    noise[1:, 1:] = covariance - decay @ covariance @ decay.T
    return damp, noise


def _exponential(matrix: FloatArray) -> FloatArray:
    """Of a matrix, by scaling, Taylor's series and squaring."""
    if len(matrix) == 1:
        return np.asarray(np.exp(matrix))
    halvings = max(0, int(np.ceil(np.log2(max(np.abs(matrix).sum(axis=1).max(), 1e-300)))) + 4)
    small = matrix / 2**halvings
    result = term = np.eye(len(matrix))
    for k in range(1, 14):
        term = term @ small / k
        result = result + term
    return np.asarray(np.linalg.matrix_power(result, 2**halvings))
