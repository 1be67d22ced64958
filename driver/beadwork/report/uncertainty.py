"""How far an average is uncertain: because the run is short, because the committee disagrees, and by both.

An observable is an average or a smooth function of averages (a variance, a free energy), which is linear in small
changes of them. So one recipe gives all errors, from series of what is averaged and the function's derivatives.

The statistical error is that of blocks (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461, 1989), so long that some 32
fill all pieces, each piece cut into equal ones. Every sample is in one, and a block counts by its length l: the error
of the mean of N samples is the root of Σ l m² / (B - 1) / N, m being the B blocks' means apart from the whole one.
Where neighbouring blocks are correlated by r > 0, their variance counts 1 + 2 r times: of 1000 samples with φ = 0.8,
in which a block holds 3.5 independent ones, the error is 0.93 of the exact one without, 1.01 with it, and of
independent samples, where r is chance, 1.05.
An estimator that cuts an autocorrelation where it first crosses zero is no use here: vibrations cross it at once.
pymbar 4.0.3's `statistical_inefficiency` gives twice the error of a series of period 7 and life 20 samples, and 15
times that of period 4.3 and life 200; blocks gave 1.0 of both (20 000 samples, the exact errors of two autoregressive
processes).

The committee's error is what its members would have had for an average, by the cumulant expansion (`report.radial`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from beadwork.frame import FloatArray
from beadwork.report.radial import deviations, reweight

#: blocks that all pieces are cut into, about: the error is then known to 13 %
BLOCKS = 32
#: fewer say nothing
FEWEST = 8
#: correlation of neighbouring blocks above which these are too short to say an error
DEPENDENT = 0.5


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Of K observables, in their unit.

    statistical: (K,) one standard deviation; NaN where there are too few samples. members: (K, M) what each member's
    average is apart from what was measured; None where nothing is known of a committee. samples: frames that it is
    from. independent: (K,) how many independent samples would have the same statistical error. dependence: (K,)
    correlation of neighbouring blocks. wander: kT, by which a member's energy goes up and down about the others', the
    largest.
    """

    statistical: FloatArray
    members: FloatArray | None
    samples: int
    independent: FloatArray
    dependence: FloatArray
    wander: float = 0.0

    @property
    def committee(self) -> FloatArray | None:
        """(K,) the members' standard deviation, of M - 1 as everywhere in beadwork."""
        return None if self.members is None else np.std(self.members, axis=1, ddof=1)

    @property
    def both(self) -> FloatArray:
        """(K,) the root of the sum of squares; they have nothing to do with each other."""
        committee = self.committee
        return self.statistical if committee is None else np.hypot(self.statistical, committee)


def uncertainty(
    pieces: Sequence[FloatArray],
    energies: Sequence[FloatArray | None] = (),
    jacobian: Callable[[FloatArray], FloatArray] | None = None,
) -> Uncertainty:
    """Return the errors of K functions of the means of the N columns of these series.

    pieces: (F, N) each, of simulations that know nothing of each other, samples evenly spaced. energies: for each piece
    (F, M) in kT, the members' energies (of a ring polymer their mean over the beads), rows of NaN where they are not
    known; or None; the same M members in all. jacobian: means (N,) -> derivatives (K, N) of the functions there; None
    for the means themselves.
    """

    def changes(series: FloatArray, mean: FloatArray) -> FloatArray:
        return series - mean if jacobian is None else (series - mean) @ jacobian(mean).T

    # one mean for all pieces: about means of their own the differences between runs would be lost
    average = np.concatenate(pieces).mean(axis=0)
    parts = [changes(piece, average) for piece in pieces]
    every = np.concatenate(parts)
    width = every.shape[1]
    # of each piece (B, K) the blocks' means times √length: of one variance, however long the blocks are
    blocks = [np.array([np.sqrt(len(one)) * one.mean(axis=0) for one in cut]) for cut in blocks_of(parts)]
    count = sum(len(one) for one in blocks)
    statistical = np.full(width, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        # within pieces alone: the last block of one and the first of the next know nothing of each other
        neighbours = sum((one[1:] * one[:-1]).sum(axis=0) for one in blocks)
        squares = sum((one**2).sum(axis=0) for one in blocks)
        dependence = np.asarray(neighbours / squares)
    if count >= FEWEST:
        # a negative one is chance: a block is longer than a vibration
        longer = np.sqrt(1 + 2 * np.maximum(dependence, 0.0))
        statistical = longer * np.sqrt(squares / (count - 1) / len(every))
    still = np.ptp(every, axis=0) == 0  # a volume that is held; what is left of it is the rounding of its mean
    statistical, dependence = np.where(still, 0.0, statistical), np.where(still, 0.0, dependence)
    with np.errstate(divide="ignore", invalid="ignore"):
        # no more than there are frames
        independent = np.minimum(every.var(axis=0) / statistical**2, len(every))
    members, wander = None, 0.0
    known = [(piece, one) for piece, one in zip(pieces, energies, strict=False) if one is not None and one.shape[1] > 1]
    if known:
        series, potentials = (np.concatenate(both) for both in zip(*known, strict=True))
        # steps at which i-PI wrote the members' energies too
        there = np.isfinite(potentials).all(axis=1)
        if there.sum() > 1:
            series, potentials = series[there], potentials[there]
            # at the means of these frames: a bin's own frames then say what a member would have there
            members = reweight(potentials, changes(series, series.mean(axis=0)), 1.0)
            wander = float(deviations(potentials, 1.0).std(axis=0).max())
    return Uncertainty(statistical, members, len(every), independent, dependence, wander)


def blocks_of(pieces: Sequence[FloatArray]) -> list[list[FloatArray]]:
    """Return each piece (F, N) cut into blocks of one length, some 32 in all; a short piece is one block."""
    length = max(1.0, sum(len(piece) for piece in pieces) / BLOCKS)
    return [np.array_split(piece, max(1, round(len(piece) / length))) for piece in pieces if len(piece)]
