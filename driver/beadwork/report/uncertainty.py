"""How far an average is uncertain: because the run is short, because the committee disagrees, and by both.

An observable is an average or a smooth function of averages (a variance, a free energy), which is linear in small
changes of them. So one recipe gives all errors, from series of what is averaged and the function's derivatives.

The statistical error is that of blocks (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461, 1989) of one length, so long
that some 32 fill all pieces; where neighbouring blocks are correlated by r > 0.2, their variance counts 1 + 2 r times.
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
#: correlation of neighbouring blocks from which on it counts; that of chance has a standard deviation of 0.18
SLOW = 0.2
#: above which the blocks are too short for that
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
    blocks = [_means(part, _length(parts)) for part in parts]
    means = np.concatenate(blocks)
    statistical = np.full(width, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        # within pieces alone: the last block of one and the first of the next know nothing of each other
        neighbours = sum((one[1:] * one[:-1]).sum(axis=0) for one in blocks)
        dependence = np.asarray(neighbours / sum((one**2).sum(axis=0) for one in blocks))
    if len(means) >= FEWEST:
        # chance makes small correlations of blocks that have none
        longer = np.sqrt(1 + 2 * np.where(dependence > SLOW, dependence, 0.0))
        statistical = longer * np.std(means, axis=0, ddof=1) / np.sqrt(len(means))
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


def _length(pieces: Sequence[FloatArray]) -> int:
    """Samples of a block: some 32 of them in all, and none longer than the shortest piece."""
    total = sum(len(piece) for piece in pieces)
    return max(1, min(total // BLOCKS, *(len(piece) for piece in pieces)))


def _means(piece: FloatArray, length: int) -> FloatArray:
    """(B, K) the means of the blocks; samples at the beginning that fill none are left out."""
    count = len(piece) // length
    whole = piece[len(piece) - count * length :]
    result: FloatArray = whole.reshape(count, length, *piece.shape[1:]).mean(axis=1)
    return result
