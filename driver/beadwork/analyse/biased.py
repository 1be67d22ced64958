"""Frames of biased simulations, weighed so that averages over them are those without a bias.

Of simulations under one bias V that does not change in time a frame counts exp(V / kT). Of umbrella windows, each with
a harmonic restraint of its own, it counts w_n = 1 / Σ_k N_k exp(f_k - u_k(n)), with u_k the restraint of window k in kT
and f_k its free energy by MBAR (Shirts and Chodera, J. Chem. Phys. 129, 124105, 2008), from pymbar.

pymbar's own errors are those of independent frames, and leave it to the user to find such. Here each frame has what it
contributes to an average, that by way of the f_k too, and blocks of these contributions have the error: f solves
g_k = Σ_n N_k W_nk - N_k = 0 with W_nk = w_n exp(f_k - u_k(n)), so that a frame changes f by -H⁺ (N_k W_nk - N_k / N)
with H = ∂g/∂f.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ipi.utils.units import unit_to_internal
from scipy.special import logsumexp

from beadwork.analyse.runs import Sampled
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray
from beadwork.report.uncertainty import Uncertainty, uncertainty
from beadwork.units import KJ_MOL

#: what part of one window's frames is the next one's as well, below which the two hang together by chance
#: (Klimovich, Shirts and Mobley, J. Comput.-Aided Mol. Des. 29, 397, 2015)
OVERLAP = 0.03
#: frames without a bias that biased ones are worth, below which a few of them make the average
LEAST_WORTH = 20.0
#: kT by which a restraint may differ from the bias that i-PI wrote: neither has all digits
_ALIKE = 0.1


@dataclass(frozen=True, slots=True)
class Restraint:
    """An umbrella: kappa / 2 (x - centre)², kappa in kJ/mol and the coordinate's unit squared."""

    centre: float
    kappa: float


@dataclass(frozen=True, slots=True)
class Ensembles:
    """Pieces of simulations, and how averages without a bias are made of them.

    which: of each piece the ensemble that it is of. weights: of each piece (F,), with the mean 1 over all frames.
    moves: of each piece (F, K), what a frame adds to the free energies of K ensembles; shares: (F, K) of each piece,
    N_k W_nk. free: (K,) free energies of the ensembles, kT. words: how a bias was taken away; '' without one.
    """

    which: list[int]
    weights: list[FloatArray]
    moves: list[FloatArray]
    shares: list[FloatArray]
    free: FloatArray
    words: str = ""

    def mean(self, columns: Sequence[FloatArray]) -> FloatArray:
        """(N,) averages of columns (F, N) of each piece."""
        weighed = [weight @ of for weight, of in zip(self.weights, columns, strict=True)]
        result: FloatArray = np.sum(weighed, axis=0) / sum(map(len, columns))
        return result

    def contributions(self, columns: Sequence[FloatArray]) -> list[FloatArray]:
        """(F, N) of each piece, whose mean over all frames are the averages of these columns (F, N) without a bias.

        What a frame does to the weights of all others is in its contribution: it adds nothing to the mean.
        """
        mean = self.mean(columns)
        weighed = [weight[:, None] * (of - mean) for weight, of in zip(self.weights, columns, strict=True)]
        # derivatives of the averages by the free energies of the ensembles, (N, K)
        slopes = -np.sum([of.T @ share for of, share in zip(weighed, self.shares, strict=True)], axis=0)
        return [mean + of + move @ slopes.T for of, move in zip(weighed, self.moves, strict=True)]

    def errors(
        self, contributions: Sequence[FloatArray], energies: Sequence[FloatArray | None], jacobian: FloatArray
    ) -> Uncertainty:
        """Return those of functions of averages with these derivatives (K, N): each ensemble has a mean and blocks of
        its own, as where its frames lie is no error.
        """
        found, parts, spread = [], [], np.zeros(len(jacobian))
        count = sum(map(len, contributions))
        for ensemble in sorted(set(self.which)):
            here = [k for k, which in enumerate(self.which) if which == ensemble]
            series = [contributions[k] @ jacobian.T for k in here]
            found.append(uncertainty(series, [energies[k] for k in here]))
            parts.append(sum(map(len, series)) / count)
            spread += parts[-1] * np.concatenate(series).var(axis=0)
        statistical = np.sqrt(sum((part * one.statistical) ** 2 for part, one in zip(parts, found, strict=True)))
        known = [part * one.members for part, one in zip(parts, found, strict=True) if one.members is not None]
        # of some windows alone it would be the members' average of nothing
        members = np.sum(known, axis=0) if len(known) == len(found) else None
        with np.errstate(divide="ignore", invalid="ignore"):
            independent = np.minimum(spread / statistical**2, count)
        dependence = np.max([np.nan_to_num(one.dependence) for one in found], axis=0)
        return Uncertainty(statistical, members, count, independent, dependence, max(one.wander for one in found))

    def difference(self) -> tuple[float, float]:
        """Return the free energy of the last ensemble less that of the first, and its statistical error, kT."""
        count = sum(map(len, self.moves))
        series = [count * (move[:, -1:] - move[:, :1]) for move in self.moves]
        error = self.errors(series, [None] * len(series), np.eye(1)).statistical[0]
        return float(self.free[-1] - self.free[0]), float(error)


def ensembles(pieces: Sequence[Sampled], coordinate: str, restraints: Sequence[Restraint]) -> Ensembles:
    """Return how averages are made of these pieces, of which each has a restraint on a coordinate; without restraints
    all are of one ensemble, unbiased or under the bias that i-PI wrote.

    A restraint acts on what the values of the coordinate are of: the centroid, or each bead, of which it is the mean.
    Raises ConfigError where there is not one restraint a piece, where one is not the bias that i-PI wrote, and for a
    bias that is not known throughout.
    """
    biases = [piece.bias for piece in pieces]
    if not restraints:
        if all(bias is None or not np.any(bias) for bias in biases):
            return _one([np.ones(len(piece.steps)) for piece in pieces])
        if any(bias is None or np.isnan(bias).any() for bias in biases):
            remedy = "have i-PI write ensemble_bias{electronvolt} among the properties at each step of the trajectory"
            raise ConfigError("the bias is not known at each step of each run", remedy)
        top = max(bias.max() for bias in biases if bias is not None)
        weights = [np.exp(bias - top) for bias in biases if bias is not None]
        every = np.concatenate(weights)
        # Kish's effective number of samples
        worth = every.sum() ** 2 / (every**2).sum()
        remedy = "give --centres and --kappa if these are umbrella windows, each with a bias of its own"
        if worth < LEAST_WORTH:
            raise ConfigError(
                f"weighed by exp(V/kT) of the bias that i-PI wrote, {len(every)} frames are worth {worth:.1f}, "
                "of which there is no average",
                remedy if len(biases) > 1 else "take a bias that stays nearer to what is there without it",
            )
        words = (
            f"frames are weighed by exp(V/kT) of the bias that i-PI wrote, and are worth {worth:.0f} of {len(every)}"
        )
        if len(biases) > 1:
            # nothing in their outputs tells one bias from several, whose weights have no common scale
            words += f"; all {len(biases)} runs are taken to be under one bias: {remedy}"
        return _one([weight / every.mean() for weight in weights], words)
    if len(restraints) != len(pieces):
        raise ConfigError(
            f"there are {len(restraints)} centres for {len(pieces)} runs", "give --centres one for each run, in order"
        )
    for piece, restraint in zip(pieces, restraints, strict=True):
        _check(piece, coordinate, restraint)
    windows = sorted(set(restraints), key=lambda one: one.centre)
    reduced = [_restrained(piece, coordinate, windows) for piece in pieces]
    names = [f"{window.centre:g} of {coordinate}" for window in windows]
    return joined(reduced, [windows.index(restraint) for restraint in restraints], names)


def joined(reduced: Sequence[FloatArray], which: Sequence[int], names: Sequence[str]) -> Ensembles:
    """Join simulations of K ensembles, neighbours in this order, by MBAR.

    reduced: of each piece (F, K), what each ensemble adds to the energy of its frames, kT. which: the ensemble that it
    is of. names: of the ensembles. Raises ConfigError where two neighbours share no frame.
    """
    lengths = [len(one) for one in reduced]
    counts = np.array([sum(n for n, of in zip(lengths, which, strict=True) if of == k) for k in range(len(names))])
    every = np.vstack(reduced)
    # pymbar wants the frames of the first ensemble first
    free = _mbar(every[np.argsort(np.repeat(which, lengths), kind="stable")], counts)
    logs = free + np.log(counts) - every
    log_weights = -logsumexp(logs, axis=1)
    shares = np.exp(logs + log_weights[:, None])  # N_k W_nk: of a frame they add up to 1
    # what part of window k + 1 the frames of window k make, and so on
    shared = np.diag(shares.T @ shares / counts[:, None], 1)
    least = float(shared.min(initial=1.0))
    if least < 1 / counts.min():
        between = " and ".join(names[int(shared.argmin()) :][:2])
        raise ConfigError(
            f"the simulations at {between} share not one frame, so that nothing says how far apart their free energies "
            "are",
            "add some between them, or make restraints softer",
        )
    hessian = np.diag(counts) - shares.T @ shares
    moves = (counts / len(shares) - shares) @ np.linalg.pinv(hessian, rcond=1e-12, hermitian=True)
    words = (
        f"{len(names)} ensembles joined by MBAR, of which neighbours share {100 * least:.2g} % of their frames or more"
    )
    if least < OVERLAP:
        words += f": below {100 * OVERLAP:g} % they hang together by chance, and errors mean little; add some between"
    ends = np.cumsum(lengths)[:-1]
    weights = np.exp(log_weights - logsumexp(log_weights)) * len(every)
    of_weights, of_moves, of_shares = (np.split(one, ends) for one in (weights, moves, shares))
    return Ensembles(list(which), of_weights, of_moves, of_shares, free, words)


def _one(weights: list[FloatArray], words: str = "") -> Ensembles:
    nothing = [np.zeros((len(weight), 0)) for weight in weights]
    return Ensembles([0] * len(weights), weights, nothing, nothing, np.zeros(1), words)


def _restrained(piece: Sampled, coordinate: str, windows: Sequence[Restraint]) -> FloatArray:
    """(F, K) what each window's restraint makes of the frames of this piece, kT."""
    kt = float(unit_to_internal("temperature", "kelvin", piece.kelvin)) * KJ_MOL
    values = piece.values[coordinate]
    return np.stack([(one.kappa / 2 / kt * (values - one.centre) ** 2).mean(axis=1) for one in windows], axis=1)


def _check(piece: Sampled, coordinate: str, restraint: Restraint) -> None:
    """Raise ConfigError where i-PI had another bias than this."""
    if not restraint.kappa >= 0:
        raise ConfigError(f"a restraint of {restraint.kappa:g} kJ/mol holds nothing", "give --kappa a number above 0")
    if piece.bias is None:
        return
    apart = np.abs(_restrained(piece, coordinate, [restraint])[:, 0] - piece.bias)
    if np.nan_to_num(apart).max() > _ALIKE:
        frame = int(np.nanargmax(apart))
        kt = float(unit_to_internal("temperature", "kelvin", piece.kelvin)) * KJ_MOL
        made = _restrained(piece, coordinate, [restraint])[frame, 0] * kt
        raise ConfigError(
            f"a restraint of {restraint.kappa:g} at {restraint.centre:g} of {coordinate} makes {made:.4g} kJ/mol at "
            f"step {piece.steps[frame]}, and the bias that i-PI wrote is {piece.bias[frame] * kt:.4g} kJ/mol",
            "give the runs' own --centres in their order, --kappa in kJ/mol and Å (PLUMED's unit of length is nm), and "
            "--restrained where the restraint is on another coordinate",
        )


def _mbar(reduced: FloatArray, counts: FloatArray) -> FloatArray:
    """(K,) free energies of windows in kT, of frames (F, K) in the order of the windows."""
    logger = logging.getLogger("pymbar")
    level = logger.level
    # when it is imported it says at length that JAX would be faster; what it says later is of the work, and stays
    logger.setLevel(logging.ERROR)
    try:
        from pymbar import MBAR
    finally:
        logger.setLevel(level)
    result: FloatArray = MBAR(reduced.T, counts, solver_protocol="robust").f_k
    return result
