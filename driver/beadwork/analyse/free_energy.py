"""Free energy along a coordinate, F(x) = -kT ln p(x), and averages of the coordinate, with their errors.

p is the histogram of what was sampled; all values of a frame (of beads, or of several atoms) count alike. To first
order a member's free energy is F_m(x) = F(x) + <V_m - V>_x - <V_m - V>, the mean of its deviation among the frames in
a bin: what the cumulant expansion of `report.radial` gives for p. F has a zero, at the lowest bin or where the user
puts it, and errors are those of the difference from there, by the covariances of the bins. The lowest of many noisy
bins lies too low by chance; curves are better compared with the mean over a range as the zero.
"""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ipi.utils.units import unit_to_internal

from beadwork.analyse.biased import Restraint, ensembles
from beadwork.analyse.runs import Sampled, alike
from beadwork.disk import reading
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray
from beadwork.report.uncertainty import Uncertainty, blocks_of, uncertainty
from beadwork.units import KJ_MOL

#: bins of a histogram
BINS = 50
#: blocks that have to have visited a bin
SEVERAL = 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, one standard deviation of it by the run's length, by the committee (None without one), and by both."""

    value: float
    statistical: float
    committee: float | None
    both: float


@dataclass(frozen=True, slots=True)
class FreeEnergy:
    """F along a coordinate.

    coordinate: as it was asked for. kelvin, beads, of: as in `Sampled`. x: (K,) middles of the bins that are known.
    energy, statistical, committee, both: (K,) kJ/mol, F and its errors; committee None where there is none, of which
    `gap` says why. members: (K, M) kJ/mol, each member's F less F. at: F where it was asked for, by the place; NaN
    where it is not known. averages: of the coordinate, 'mean', 'standard deviation' and 'root mean square'.
    samples: frames. independent, dependence, wander: as in `Uncertainty`, of the mean, or of the root mean square where
    the mean is 0 by symmetry. weighing: how a bias was taken away, in words; '' without one.
    """

    coordinate: str
    kelvin: float
    beads: int
    of: str
    x: FloatArray
    energy: FloatArray
    statistical: FloatArray
    committee: FloatArray | None
    both: FloatArray
    members: FloatArray | None
    at: dict[float, Estimate]
    averages: dict[str, Estimate]
    samples: int
    independent: float
    dependence: float
    wander: float
    gap: str
    weighing: str

    @property
    def whose(self) -> str:
        """Whose distribution it is, in words."""
        if self.beads == 1:
            return "classical"
        return f"centroid of {self.beads} beads" if self.of == "centroid" else f"each of {self.beads} beads"


def free_energy(
    pieces: Sequence[Sampled],
    coordinate: str,
    bins: int = BINS,
    reach: tuple[float, float] | None = None,
    zero: float | tuple[float, float] | None = None,
    at: Iterable[float] = (),
    symmetric: bool = False,
    restraints: Sequence[Restraint] = (),
    restrained: str | None = None,
) -> FreeEnergy:
    """Return the free energy along a coordinate from one run or several, without what biased them.

    coordinate: the name of it in their values. bins: how many from end to end of `reach`, which is from the least to
    the largest value where it is None; values outside count in p and the averages. zero: where F is 0, or
    (low, high), between which the mean of F over the bins is; in the lowest bin if None. at: where F is wanted, on
    straight lines between the middles of bins. symmetric: x and -x are the same state, and each value counts as both.
    restraints: of umbrella windows, one a piece, on the coordinate `restrained` of their values, by default the same;
    without them frames are weighed by the bias that i-PI wrote, if it wrote one (`analyse.biased`).
    A bin is known where two blocks of `report.uncertainty` at least have visited it: what one excursion has seen has no
    error, and nothing tells it from one that did not happen. Raises ConfigError for runs that cannot be averaged, and
    for a zero that is not known.
    """
    alike(pieces)
    if bins < 2:
        raise ConfigError(f"a histogram of {bins} bins has no shape", "ask for 2 at least")
    kt = float(unit_to_internal("temperature", "kelvin", pieces[0].kelvin)) * KJ_MOL
    values = [piece.values[coordinate] for piece in pieces]
    of_bias = ensembles(pieces, restrained or coordinate, restraints)
    if symmetric:
        # both in one frame: the errors then know that they are no two samples
        values = [np.hstack([one, -one]) for one in values]
    edges = _edges(np.concatenate(values), coordinate, bins, reach)
    low, high = edges[[0, -1]]
    counts = [_histogram(one, edges) for one in values]
    p = of_bias.mean(counts)
    if not p.any():
        raise ConfigError(f"{coordinate} is never from {low:g} to {high:g}", "give another --range")
    # F of a bin that was never visited is not infinite, but unknown
    seen = np.array([block.any(axis=0) for cut in blocks_of(counts) for block in cut])
    visited = seen.sum(axis=0) >= SEVERAL
    if not visited.any():
        what = f"no bin from {low:g} to {high:g} was visited in {SEVERAL} blocks of the run"
        raise ConfigError(what, "give a longer run, or fewer --bins")
    x, p = ((edges[1:] + edges[:-1]) / 2)[visited], p[visited]
    energy = -kt * np.log(p / (edges[1] - edges[0]))
    wanted = list(at)
    origin = _origin(x, energy, zero, edges, coordinate)
    lines = np.array([np.nan_to_num(_between(x, place, edges)) for place in wanted]).reshape(-1, len(x))
    known = [not np.isnan(_between(x, place, edges)).any() for place in wanted]
    bars = [slice(0, len(x)), slice(len(x), len(x) + len(wanted)), slice(len(x) + len(wanted), None)]

    def jacobian(means: FloatArray) -> FloatArray:
        return _derivatives(means, origin, lines, kt)

    series = [
        np.column_stack([count[:, visited], one.mean(axis=1), (one**2).mean(axis=1)])
        for one, count in zip(values, counts, strict=True)
    ]
    series = of_bias.contributions(series)
    means = np.concatenate(series).mean(axis=0)
    mean, square = means[len(x) :]
    energies = [piece.energies for piece in pieces]
    if len(set(of_bias.which)) == 1:
        errors = uncertainty(series, energies, jacobian)
    else:
        errors = of_bias.errors(series, energies, jacobian(means))
    energy -= energy @ origin
    places = [
        estimate if there else Estimate(*[np.nan] * 4)
        for estimate, there in zip(estimates(lines @ energy, errors, bars[1]), known, strict=True)
    ]
    averages = estimates(np.array([mean, np.sqrt(square - mean**2), np.sqrt(square)]), errors, bars[2])
    committee = errors.committee
    gaps = [piece.gap for piece in pieces if piece.gap]
    return FreeEnergy(
        coordinate,
        pieces[0].kelvin,
        pieces[0].beads,
        pieces[0].of,
        x,
        energy,
        errors.statistical[bars[0]],
        None if committee is None else committee[bars[0]],
        errors.both[bars[0]],
        None if errors.members is None else errors.members[bars[0]],
        dict(zip(wanted, places, strict=True)),
        dict(zip(("mean", "standard deviation", "root mean square"), averages, strict=True)),
        errors.samples,
        # the mean of a symmetric coordinate is 0 without error; its root mean square says how independent frames are
        float(errors.independent[bars[2]][2 * symmetric]),
        float(errors.dependence[bars[2]][2 * symmetric]),
        errors.wander,
        gaps[0] if gaps else "",
        of_bias.words,
    )


def _edges(values: FloatArray, coordinate: str, bins: int, reach: tuple[float, float] | None) -> FloatArray:
    """(bins + 1,): of bins of one width over the range. Raises ConfigError for one without a width."""
    low, high = reach or (float(values.min()), float(values.max()))
    if not low < high:
        what = f"the range from {low:g} to {high:g} is empty" if reach else f"{coordinate} is {low:g} throughout"
        raise ConfigError(what, "give another --range, LOW before HIGH, or another coordinate")
    return np.linspace(low, high, bins + 1)


def _origin(
    x: FloatArray, energy: FloatArray, zero: float | tuple[float, float] | None, edges: FloatArray, coordinate: str
) -> FloatArray:
    """What each of the known bins, with middles x, counts in the number that is to be 0. Raises ConfigError for a place
    that is not known."""
    if zero is None:
        place, origin = "", np.eye(len(x))[np.argmin(energy)]
    elif isinstance(zero, tuple):
        inside = (zero[0] <= x) & (x <= zero[1])
        place, origin = f"{zero[0]:g} to {zero[1]:g}", inside / (inside.sum() or np.nan)
    else:
        place, origin = f"{zero:g}", _between(x, zero, edges)
    if np.isnan(origin).any():
        what = f"{coordinate} was never about {place}, where F is to be 0, or in one block of the run only"
        raise ConfigError(what, "give another --zero, or a longer run")
    return np.asarray(origin)


def _derivatives(means: FloatArray, origin: FloatArray, lines: FloatArray, kt: float) -> FloatArray:
    """Derivatives of F in each bin and at each place, of mean, standard deviation and root mean square of the
    coordinate, by p of each bin, the mean and the mean square.

    means: those, one after another. origin: (B,), lines: (places, B), what the B bins count in F's zero and at a place.
    """
    bins, places = len(origin), len(lines)
    of_p, (mean, square) = means[:bins], means[bins:]
    with np.errstate(divide="ignore", invalid="ignore"):
        # a bin without frames (of those with members' energies) leaves the others what they are
        from_zero = np.where(origin != 0, -kt * origin / of_p, 0.0)
        deviation = np.sqrt(square - mean**2)
        rows = np.zeros((bins + places + 3, bins + 2))
        rows[:bins, :bins] = np.diag(-kt / of_p) - from_zero
        rows[bins : bins + places, :bins] = np.where(lines != 0, -kt * lines / of_p, 0.0) - from_zero
        rows[bins + places :, bins:] = [[1, 0], [-mean / deviation, 0.5 / deviation], [0, 0.5 / np.sqrt(square)]]
    return rows


def estimates(values: FloatArray, errors: Uncertainty, columns: slice = slice(None)) -> list[Estimate]:
    """Return values (K,) with their errors, which are in these columns."""
    committee = errors.committee
    whole = [None] * len(values) if committee is None else committee[columns].tolist()
    bars = zip(values.tolist(), errors.statistical[columns].tolist(), whole, errors.both[columns].tolist(), strict=True)
    return [Estimate(*each) for each in bars]


def _histogram(values: FloatArray, edges: FloatArray) -> FloatArray:
    """(F, K) what part of a frame's values (F, V) is in each bin; the last has its upper edge."""
    frames, several = values.shape
    width, bins = edges[1] - edges[0], len(edges) - 1
    place = np.floor((values - edges[0]) / width).astype(np.int_)
    # as np.histogram has it: the last bin has both of its edges
    place[values == edges[-1]] = bins - 1
    # frame by frame, as the statistical error needs the series and not the sum
    row = np.broadcast_to(np.arange(frames)[:, None], values.shape)
    inside = (place >= 0) & (place < bins)
    flat = np.bincount((row * bins + place)[inside], minlength=frames * bins)
    result: FloatArray = flat.reshape(frames, bins) / several
    return result


def _between(x: FloatArray, place: float, edges: FloatArray) -> FloatArray:
    """(K,) weights of the bins that a straight line at this place has; NaN where a bin beside it is not known.

    In the outer half of an end bin it is that bin.
    """
    weights = np.zeros(len(x))
    width = edges[1] - edges[0]
    near = np.flatnonzero(np.abs(x - place) <= width * (1 - 1e-9))
    if not edges[0] <= place <= edges[-1] or not len(near):
        return np.full(len(x), np.nan)
    if len(near) == 1:
        alone = abs(x[near[0]] - place)
        # beyond the middle of an end bin there is no second bin to draw a line to
        ends = place <= edges[0] + width / 2 or place >= edges[-1] - width / 2
        if alone > 1e-9 * width and not ends:
            return np.full(len(x), np.nan)
        weights[near[0]] = 1.0
        return weights
    weights[near] = 1 - np.abs(x[near] - place) / width
    return weights


def read_curve(
    path: Path, kelvin: float, field: str | None = None, scale: float = 1.0, symmetric: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Read a free energy of elsewhere: x (N,), and F (N,) in kJ/mol with its lowest value 0.

    path: two columns of text, or a grid that PLUMED wrote, of which the fields besides `field` (by default the last of
    the grid) are integrated over with weights exp(-F / kT). It may be compressed by gzip or bzip2. scale: what x is
    multiplied by, 10 for PLUMED's nm. symmetric: x and -x are the same state. Raises ConfigError.
    """
    kt = float(unit_to_internal("temperature", "kelvin", kelvin)) * KJ_MOL
    opened = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix, open)
    remedy = "give two columns of numbers, or a grid by PLUMED"
    with reading(path, ConfigError, remedy):
        with opened(path, "rt", encoding="utf-8") as lines:
            text = [line.split() for line in lines if line.strip()]
        fields = next((line[2:] for line in text if line[:2] == ["#!", "FIELDS"]), ["x", "F"])
        # there may be derivatives after the free energy, or only their names
        value = next((k for k, name in enumerate(fields) if name.endswith("free")), 1)
        table = np.array([[float(word) for word in line[: value + 1]] for line in text if line[0][0] != "#"])
    if table.ndim != 2 or table.shape[1] != value + 1 or not value:
        raise ConfigError(f"{path} has no {value + 1} columns", remedy)
    # PLUMED writes inf where nothing was sampled
    along, depth = table[:, :value], table[:, value]
    if not np.isfinite(along).all() or not (depth > -np.inf).all() or not np.isfinite(depth).any():
        raise ConfigError(f"{path} has numbers that are none", remedy)
    if field is not None and field not in fields[:value]:
        raise ConfigError(f"{path} has no field {field}", f"it has {', '.join(fields[:value])}")
    x, which = np.unique(along[:, fields.index(field) if field is not None else -1] * scale, return_inverse=True)
    # integrated over the other fields: p of one is the sum of p over the others
    weight: FloatArray = np.bincount(which, np.exp(-(depth - depth.min()) / kt)).astype(np.float64)
    if symmetric:
        weight = weight + np.interp(-x, x, weight, left=0, right=0)
    with np.errstate(divide="ignore"):
        energy = -kt * np.log(weight)
    return x, energy - energy.min()
