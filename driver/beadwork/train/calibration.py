"""The errors of a committee on labelled frames, and the calibration of its spread with them.

Errors are those of the committee's mean against the label. Their error bars are standard deviations over a thousand
bootstrap samples of the blocks (`split.blocks`): atoms of one frame are not independent, nor are consecutive frames of
one simulation; blocks are assumed to be. Fewer than four blocks have no error bar (NaN): the scatter of two or three
says nothing of their mean.

alpha of labels without noise is chosen so that as many errors lie inside one and two standard deviations, counted
together, as should: a quantile of error / s, which few structures with large errors do not move. The ratio of the mean
squares is what those make it: two simulations of 78 raised those of models/water-highlevel by 20 and 30 %, and 78 % of
the force errors lay inside one sigma in place of 66. It scatters less, too: by 49 % with the energies of five frames
and 12 % with those of 78, where the mean squares' scatters by 53 and 19 (four members, widths that vary by a factor of
two).

Labels with noise have the ratio of the mean squares,
alpha^2 = (mean error^2 - mean sigma^2) / mean s^2, s^2 the sample variance of the members: right in the mean for any
number of members, any widths and any noise, while what should lie inside then depends on the true widths, which a few
members do not tell (20 % off with four). A maximum likelihood (Imbalzano et al., J. Chem. Phys. 154, 074102, 2021)
scatters less, but with four members and noisy labels it is wrong by tens of percent.

The expected fraction of errors inside so many sigmas: s^2 has M - 1 degrees of freedom (3 (M - 1) for the force on an
atom), so the true variance is s^2 (M - 1) / x with x distributed as chi squared, and an error is Gaussian of variance
alpha^2 s^2 (M - 1) / x + sigma^2, averaged over x; without noise that is Student's t, and with four members far from a
Gaussian: 61 and 86 % of energies lie inside one and two sigma, not 68 and 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beadwork.digits import with_bar
from beadwork.errors import LabelError
from beadwork.frame import FloatArray, IntArray
from beadwork.potential.bundle import SPREAD_TABLE, USUAL_QUANTILE
from beadwork.potential.load import load
from beadwork.train.dataset import BATCH, Dataset, Example
from beadwork.train.plan import apart_of, references
from beadwork.train.split import APART, blocks, split

BOOTSTRAP_SAMPLES = 1000
NO_CALIBRATION = (
    "alpha is 1, since the spread cannot be calibrated: too few frames or blocks, a single member, or labels noisier "
    "than the errors"
)
#: quantiles of chi squared over which is averaged
CHI_SQUARED_NODES = 50
#: standard deviations inside which errors are counted to choose alpha
COVERAGE = (1, 2)
#: an alpha is fitted to no fewer frames
MIN_FRAMES = 4
#: an error bar is taken from no fewer blocks; that of four is known to 40 %
MIN_BLOCKS = 4
#: fractions of the held-out frames for which committee.toml gives quantiles of the spread
QUANTILE_FRACTIONS = (0.5, 0.9, USUAL_QUANTILE, 1.0)


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of one quantity on n frames: all of its values (one per frame, or three per atom), concatenated.

    error: value of the committee minus the label's. noise: standard error of the label. spread: of the committee,
    before alpha, or None with one member. frame: index of the frame of each value. freedom: degrees of freedom of the
    spread. block: number of the block of each value, None where each frame is one. Units: eV/atom for energies,
    eV/Å for forces.
    """

    error: FloatArray
    noise: FloatArray
    spread: FloatArray | None
    frame: IntArray
    freedom: int
    block: IntArray | None = None

    def take(self, frames: Sequence[int]) -> Errors:
        """The same for some of the frames."""
        at = np.isin(self.frame, frames)
        spread = None if self.spread is None else self.spread[at]
        block = None if self.block is None else self.block[at]
        return Errors(self.error[at], self.noise[at], spread, self.frame[at], self.freedom, block)

    @property
    def rmse(self) -> tuple[float, float]:
        """Root mean square error and its error bar."""
        return _with_bar(np.sqrt(self._means(self.error**2)))

    def width(self, alpha: float) -> FloatArray:
        """Standard deviation that each error should have: spread times alpha, and the label's noise."""
        if self.spread is None:
            raise LabelError("one model has no spread", "validate a committee of at least two members")
        return np.sqrt((alpha * self.spread) ** 2 + self.noise**2)

    def inside(self, alpha: float, sigmas: float) -> tuple[float, float]:
        """Fraction of the errors within so many standard deviations, and its error bar."""
        return _with_bar(self._means(np.abs(self.error) < sigmas * self.width(alpha)))

    def expected(self, alpha: float, sigmas: float) -> float:
        """Expected fraction of the errors within so many standard deviations."""
        from scipy.special import erf

        return float(np.mean(erf(sigmas * self.width(alpha) / self._widths(alpha) / np.sqrt(2))))

    def fit_alpha(self) -> float | None:
        """The alpha of these errors, as said at the top; None where they are no larger than the labels' noise, or where
        members do not differ."""
        if self.spread is None:
            raise LabelError("one model has no spread", "validate a committee of at least two members")
        if self.noise.any():
            beyond = float((self.error**2).mean() - (self.noise**2).mean())
            # where noise explains all of the error nothing can be said of the spread
            return float(np.sqrt(beyond / (self.spread**2).mean())) if beyond > 0 and self.spread.any() else None
        from scipy.stats import t

        size = np.abs(self.error)
        # members that agree exactly are right, or infinitely too sure
        ratio = np.divide(size, self.spread, out=np.where(size > 0, np.inf, 0.0), where=self.spread > 0)
        expected = [1 - 2 * float(t.sf(sigmas, self.freedom)) for sigmas in COVERAGE]
        # |error| < sigmas alpha s for both sigmas at once: alpha is above that part of all ratio / sigmas
        alpha = float(
            np.quantile(np.concatenate([ratio / sigmas for sigmas in COVERAGE]), np.mean(expected), method="higher")
        )
        return alpha if 0 < alpha < np.inf else None

    def _means(self, values: FloatArray | NDArray[np.bool_]) -> FloatArray:
        """The mean of the values, followed by its bootstrap samples over blocks; the mean alone for too few of them."""
        # sums and counts of blocks suffice: a sample of a million force components costs as much as one of few blocks
        _, at = np.unique(self.frame if self.block is None else self.block, return_inverse=True)
        sums, counts = np.bincount(at, weights=values), np.bincount(at)
        # always the same draws: a card that is written twice has the same error bars
        draws = np.random.default_rng(0).integers(
            len(sums), size=(BOOTSTRAP_SAMPLES if len(sums) >= MIN_BLOCKS else 0, len(sums))
        )
        return np.concatenate(([sums.sum() / counts.sum()], sums[draws].sum(axis=1) / counts[draws].sum(axis=1)))

    def _widths(self, alpha: float) -> FloatArray:
        """Possible true widths of each error: (CHI_SQUARED_NODES, values), equally likely."""
        from scipy.stats import chi2

        # quantiles of equal probability, so that a plain mean over them is the average over x
        x = chi2.ppf((np.arange(CHI_SQUARED_NODES) + 0.5) / CHI_SQUARED_NODES, self.freedom) / self.freedom
        if self.spread is None:
            raise LabelError("one model has no spread", "validate a committee of at least two members")
        widths: FloatArray = np.maximum(np.sqrt((alpha * self.spread) ** 2 / x[:, None] + self.noise**2), 1e-12)
        return widths


@dataclass(frozen=True, slots=True)
class Residuals:
    """Errors of a committee on examples: energies (eV/atom), and force components (eV/Å) of those that have forces.

    baseline_energy, baseline_forces: the errors of the baseline alone, with the reference energies subtracted.
    largest: the largest force spread of any atom of each frame, eV/Å before alpha, None with one member.
    apart: steps of a simulation between two blocks.
    """

    examples: tuple[Example, ...]
    energy: Errors
    forces: Errors | None
    baseline_energy: Errors
    baseline_forces: Errors | None
    largest: FloatArray | None = None
    apart: int = APART

    @property
    def measured(self) -> dict[str, Any]:
        """Root mean square errors as a card has them: each with its error bar, of committee and of baseline."""
        table: dict[str, Any] = {"frames": len(self.examples), "blocks": len(set(blocks(self.examples, self.apart)))}
        for name, unit, errors in (
            ("energy", "meV_per_atom", self.energy),
            ("baseline_energy", "meV_per_atom", self.baseline_energy),
            ("force", "meV_per_angstrom", self.forces),
            ("baseline_force", "meV_per_angstrom", self.baseline_forces),
        ):
            if errors is not None:
                table[f"{name}_rmse_{unit}"] = [round(1e3 * value, 4) for value in errors.rmse]
        return table

    def halves(self, errors: Errors) -> tuple[list[int], list[int]]:
        """Frames to fit alpha on, and frames to test it on: half of the blocks each, of the frames that have such
        errors, and no frame of one half closer than `apart` steps to the other.
        """
        have = np.unique(errors.frame).tolist()
        # by blocks, as for training: alpha tested on neighbours of the frames it was fitted to would look better than
        # it is
        marks = split([self.examples[i] for i in have], 0.5, 0, apart=self.apart)
        return (
            [i for i, test in zip(have, marks, strict=True) if test is False],
            [i for i, test in zip(have, marks, strict=True) if test],
        )

    def compositions(self) -> dict[str, list[int]]:
        """Frames of each composition, by its name."""
        found: dict[str, list[int]] = {}
        for i, example in enumerate(self.examples):
            found.setdefault(example.composition, []).append(i)
        return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Calibration:
    """alpha from one half of the held-out frames, and its test on the other half.

    quantity: `forces` or `energy`. before, after: fractions of the errors within one and two standard deviations, each
    with its error bar, without and with alpha. expected: those fractions for this number of members.
    """

    alpha: float
    quantity: str
    before: tuple[tuple[float, float], tuple[float, float]]
    after: tuple[tuple[float, float], tuple[float, float]]
    expected: tuple[float, float]
    frames: tuple[int, int]

    def __str__(self) -> str:
        one, two = (
            f"{_percent(*b)} before and {_percent(*a)} after" for b, a in zip(self.before, self.after, strict=True)
        )
        return (
            f"alpha {self.alpha:.3g} from the {self.quantity} of {self.frames[0]} frames; of the errors in the other "
            f"{self.frames[1]}, {one} lie inside one sigma ({100 * self.expected[0]:.0f} % expected), {two} inside two "
            f"({100 * self.expected[1]:.0f} % expected)"
        )


def residuals(
    examples: Sequence[Example], members: Sequence[Path], reference: dict[int, float], apart: int
) -> Residuals:
    """Evaluate a Δ committee on examples.

    reference: the committee's reference energies, eV by atomic number. apart: steps of a simulation between two blocks,
    whose number decides the error bars (`plan.apart_of` the committee).
    """
    # alpha 1: the spread before calibration is what alpha is fitted to
    potential = load(None, members, alpha=1.0)
    atoms = np.array([len(e.frame.numbers) for e in examples])
    energies, spreads, forces, force_spreads, largest = [], [], [], [], []
    for start in range(0, len(examples), BATCH):
        result = potential.evaluate([e.frame for e in examples[start : start + BATCH]])
        energies.append(result.energies)
        forces.append(result.forces)
        if result.spread is not None:
            spreads.append(result.spread.energy)
            force_spreads.append(result.spread.force)
            largest.append(result.spread.largest)
    label = np.array([e.energy for e in examples])
    # the baseline alone lacks the reference energies of the labels: a constant per composition that is no error of it
    shift = np.array([sum(reference[int(z)] for z in e.frame.numbers) for e in examples])
    noise = np.array([e.energy_error for e in examples]) / atoms
    index = np.arange(len(examples))
    block = blocks(examples, apart)
    most = np.concatenate(largest) if largest else None
    # the mean is taken from the same members, which costs one degree of freedom
    freedom = max(1, len(potential.members) - 1)
    spread = np.concatenate(spreads) / atoms if spreads else None
    energy = Errors((np.concatenate(energies) - label) / atoms, noise, spread, index, freedom, block)
    baseline = Errors((shift - label) / atoms, noise, None, index, freedom, block)
    # labels without forces (QMC) count for the energies alone
    have = np.repeat([e.forces is not None for e in examples], atoms)
    if not have.any():
        return Residuals(tuple(examples), energy, None, baseline, None, most, apart)
    wanted = np.concatenate([e.forces for e in examples if e.forces is not None])
    noise = np.concatenate(
        [
            np.zeros_like(e.forces) if e.forces_error is None else e.forces_error
            for e in examples
            if e.forces is not None
        ]
    ).ravel()
    where = np.repeat(np.repeat(index, atoms)[have], 3)
    # the spread of an atom is that of one component, so all three have the same
    spread = np.repeat(np.concatenate(force_spreads)[have], 3) if force_spreads else None
    return Residuals(
        tuple(examples),
        energy,
        # three components an atom, so three times the degrees of freedom
        Errors((np.concatenate(forces)[have] - wanted).ravel(), noise, spread, where, 3 * freedom, block[where]),
        baseline,
        Errors(-wanted.ravel(), noise, None, where, 3 * freedom, block[where]),
        most,
        apart,
    )


def calibrate(found: Residuals, fit_on: Sequence[int] | None = None) -> dict[str, Calibration]:
    """Fit alpha of the 'forces' and alpha of the 'energy', each on half of its frames, and test it on the other half.

    fit_on: indices of the frames to fit on, where they are not to be chosen here; the others test. A quantity is left
    out with one member, too few frames, or labels noisier than the errors.
    """
    fitted = {}
    for quantity, errors in (("forces", found.forces), ("energy", found.energy)):
        if errors is None or errors.spread is None:
            continue
        # each quantity on its own frames: not all labels have forces
        fit, test = found.halves(errors) if fit_on is None else _sides(errors, fit_on)
        # no alpha from a handful of frames: it would scale every spread of a run
        if len(fit) + len(test) < MIN_FRAMES or not fit or not test or (alpha := errors.take(fit).fit_alpha()) is None:
            continue
        # what is reported of alpha is from frames that did not choose it
        rest = errors.take(test)
        fitted[quantity] = Calibration(
            alpha,
            quantity,
            (rest.inside(1.0, 1), rest.inside(1.0, 2)),
            (rest.inside(alpha, 1), rest.inside(alpha, 2)),
            (rest.expected(alpha, 1), rest.expected(alpha, 2)),
            (len(fit), len(test)),
        )
    return fitted


def _sides(errors: Errors, fit_on: Sequence[int]) -> tuple[list[int], list[int]]:
    """The frames that have such errors: those to fit on, and the others."""
    have = np.unique(errors.frame)
    chosen = np.isin(have, fit_on)
    return have[chosen].tolist(), have[~chosen].tolist()


def format_calibration(fitted: Mapping[str, Calibration]) -> str:
    """Format the calibrations, and which alpha is used where one could not be fitted."""
    if not fitted:
        return NO_CALIBRATION
    lone = "".join(
        f"; that of the {missing} could not be fitted, so the same alpha is used"
        for missing in ("forces", "energy")
        if missing not in fitted
    )
    return "; ".join(map(str, fitted.values())) + lone


def scale(found: Residuals, fitted: Mapping[str, Calibration]) -> dict[str, Any]:
    """The entries of committee.toml about the spread: alpha (of forces), energy_alpha, quantiles on held-out frames.

    An alpha that could not be fitted is equal to the other one, and 1 where neither could.
    """
    # forces first, of which there are more values
    either = next((one.alpha for one in fitted.values()), 1.0)
    forces, energy = (fitted[what].alpha if what in fitted else either for what in ("forces", "energy"))
    card: dict[str, Any] = {"alpha": round(forces, 4), "energy_alpha": round(energy, 4)}
    if (known := quantiles(found.largest, forces)) is not None:
        card[SPREAD_TABLE] = known
    return card


def quantiles(largest: FloatArray | None, alpha: float) -> dict[str, Any] | None:
    """Quantiles of the largest force spread of a frame, after alpha: the table `bundle.SPREAD_TABLE` of committee.toml.

    largest: (F,) eV/Å before alpha, of frames that no member has seen. None for too few frames, or one member.
    """
    if largest is None or len(largest) < MIN_FRAMES:
        return None
    return {
        "frames": len(largest),
        "shares": list(QUANTILE_FRACTIONS),
        "force_eV_per_angstrom": [float(f"{q:.4g}") for q in alpha * np.quantile(largest, QUANTILE_FRACTIONS)],
    }


def _percent(share: float, bar: float) -> str:
    return f"{with_bar(100 * share, 100 * bar)} %"


def _with_bar(samples: FloatArray) -> tuple[float, float]:
    """A value and its error bar, from the value and its bootstrap samples; NaN without samples."""
    return float(samples[0]), float(samples[1:].std()) if len(samples) > 1 else np.nan


def held_out(dataset: Dataset, members: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The card's entries about the spread (`calibration.scale`), and the errors on the held-out frames; without such
    frames, the reason.

    A model of the labels themselves has neither alpha nor a baseline, so its card has only its own errors.
    """
    whole = dataset.baseline is None
    if not dataset.testing:
        if whole:
            return {}, {"frames": 0}
        return {"alpha": 1.0}, {"frames": 0, "alpha": "1, because no frames were held out"}
    found = residuals(dataset.testing, members, references(members[0]), apart_of(members[0]))
    measured = found.measured
    if whole:
        return {}, {key: value for key, value in measured.items() if not key.startswith("baseline")}
    fitted = calibrate(found)
    measured["alpha"] = format_calibration(fitted)
    return scale(found, fitted), measured
