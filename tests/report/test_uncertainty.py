"""Errors of averages against processes whose error is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from beadwork.report.uncertainty import DEPENDENT, uncertainty

#: autoregressive processes x_t = Σ_k φ_k x_(t-k) + noise: a decay, and vibrations that live for 4 and for 20 samples
DECAY = (0.9,)


def vibration(period: float, life: float) -> tuple[float, float]:
    """φ of a vibration of this period and life, in samples."""
    damping = np.exp(-1 / life)
    return float(2 * damping * np.cos(2 * np.pi / period)), float(-(damping**2))


def process(phi: tuple[float, ...], length: int, rng: np.random.Generator) -> np.ndarray:
    """Length samples (length, 1) of the process with noise of variance 1, after it has forgotten its start."""
    noise = rng.normal(size=length + 3000)
    return np.asarray(lfilter([1.0], np.r_[1.0, -np.array(phi)], noise)[3000:, None])


@pytest.mark.parametrize("phi", [DECAY, vibration(7, 20), vibration(7, 4), (0.0,)])
def test_statistical_error_is_that_of_the_process(phi: tuple[float, ...]) -> None:
    """The variance of a mean of N samples is 1 / (1 - Σφ)² / N, whether they decay or vibrate: a series that crosses
    zero at once must not be taken for one with few independent samples."""
    rng = np.random.default_rng(3)
    length = 16_000
    exact = 1 / (1 - sum(phi)) / np.sqrt(length)
    found = np.array([uncertainty([process(phi, length, rng)]).statistical[0] for _ in range(40)])
    assert np.sqrt(np.mean(found**2)) == pytest.approx(exact, rel=0.07)
    assert np.std(found) / exact < 0.2  # each of them is to be relied on


def test_means_scatter_as_the_error_says() -> None:
    """Of 200 runs the measured means lie within one and two errors as often as those of a normal distribution."""
    rng = np.random.default_rng(4)
    runs = [process(DECAY, 4000, rng) for _ in range(200)]
    off = np.array([run.mean() / uncertainty([run]).statistical[0] for run in runs])
    assert 0.60 < np.mean(np.abs(off) < 1) < 0.76
    assert 0.90 < np.mean(np.abs(off) < 2) < 0.99


def test_pieces_are_as_good_as_one_run() -> None:
    """Four runs of different lengths have the error of one that is as long as all; no block spans two of them."""
    rng = np.random.default_rng(5)
    lengths = (2000, 3000, 4000, 7000)
    exact = 10 / np.sqrt(sum(lengths))
    found = [uncertainty([process(DECAY, n, rng) for n in lengths]).statistical[0] for _ in range(40)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(exact, rel=0.08)


@pytest.mark.parametrize("pieces", [20, 24])
def test_pieces_that_no_whole_number_of_blocks_fills(pieces: int) -> None:
    """Of 20 or 24 equal pieces a 32nd of all is longer than half of one and shorter than it: the error is still that of
    all samples, of which none is left out (1.00 and 0.99 of the exact one; blocks of a 32nd alone said 1.26 and
    1.16)."""
    rng = np.random.default_rng(14)
    phi, length = (float(np.exp(-1 / 20)),), 2000
    exact = 1 / (1 - phi[0]) / np.sqrt(pieces * length)
    found = [uncertainty([process(phi, length, rng) for _ in range(pieces)]).statistical[0] for _ in range(80)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(exact, rel=0.06)


def test_a_torn_piece_does_not_cut_the_others_short() -> None:
    """A run of ten samples beside long ones is a short block of its own, and leaves the length of theirs."""
    rng = np.random.default_rng(15)
    exact = 10 / np.sqrt(16_010)
    found = [
        uncertainty([process(DECAY, 10, rng), process(DECAY, 8000, rng), process(DECAY, 8000, rng)]).statistical[0]
        for _ in range(40)
    ]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(exact, rel=0.08)


def test_independent_samples_are_counted() -> None:
    """A decay of φ = 0.9 has a statistical inefficiency of (1 + φ) / (1 - φ) = 19; white noise has 1."""
    rng = np.random.default_rng(6)
    both = np.hstack([process(DECAY, 40_000, rng), process((0.0,), 40_000, rng)])
    found = np.mean([uncertainty([part]).independent for part in np.split(both, 4)], axis=0)
    assert found[0] == pytest.approx(10_000 / 19, rel=0.25)
    assert found[1] == pytest.approx(10_000, rel=0.15)


def test_motion_that_is_slower_than_the_blocks_counts() -> None:
    """Of a run that is 60 decay times long, 32 blocks depend on each other and say three quarters of the error; with
    the correlation of neighbours it is five sixths at least (0.87 here). A quick column beside it stays what it is."""
    rng = np.random.default_rng(10)
    phi, length = 0.99, 6000
    exact = np.array([1 / (1 - phi), 1.0]) / np.sqrt(length)
    runs = [np.hstack([process((phi,), length, rng), process((0.0,), length, rng)]) for _ in range(80)]
    found = np.sqrt(np.mean([uncertainty([run]).statistical ** 2 for run in runs], axis=0))
    short = [run[: 32 * 187].reshape(32, 187, 2).mean(axis=1).var(axis=0, ddof=1) / 32 for run in runs]
    assert np.sqrt(np.mean(short, axis=0))[0] < 0.8 * exact[0]
    assert 5 / 6 < found[0] / exact[0] < 1.1
    assert 0.95 < found[1] / exact[1] < 1.1


def test_blocks_of_few_independent_samples() -> None:
    """A block that holds 3.5 independent samples depends on its neighbour by 0.08, which counts: without it errors are
    0.93 of the exact one, and 64 % of the means lie within them. Of 600 runs."""
    rng = np.random.default_rng(16)
    phi, length = (0.8,), 1000
    exact = 1 / (1 - phi[0]) / np.sqrt(length)
    runs = [process(phi, length, rng) for _ in range(600)]
    found = np.array([uncertainty([run]).statistical[0] for run in runs])
    assert 0.97 < np.sqrt(np.mean(found**2)) / exact < 1.06
    assert np.mean(np.abs([run.mean() for run in runs]) < found) == pytest.approx(0.683, abs=0.03)


def test_too_few_blocks_have_no_error_and_slow_ones_are_told() -> None:
    """Seven samples say nothing; a run that is a few correlation times long has blocks that depend on each other."""
    rng = np.random.default_rng(7)
    assert np.isnan(uncertainty([process(DECAY, 7, rng)]).statistical[0])
    assert uncertainty([process((0.999,), 3000, rng)]).dependence[0] > DEPENDENT
    assert uncertainty([process(DECAY, 40_000, rng)]).dependence[0] < DEPENDENT


def test_committee_error_is_that_of_its_members() -> None:
    """Harmonic wells of stiffness 1 + k_m about their mean: <x²> = kT (1 - k_m) to first order, <x> stays 0; the error
    is their standard deviation of M - 1, and the statistical one stands apart."""
    thermal, rng = 0.7, np.random.default_rng(8)
    stiffer = np.array([0.04, -0.01, -0.03, 0.0])
    x = rng.normal(0, np.sqrt(thermal), 400_000)
    energies = 0.5 * np.outer(x**2, 1 + stiffer) + np.array([3.0, -2.0, 0.0, 1.0])  # apart at all times: no uncertainty
    found = uncertainty([np.column_stack([x**2, x])], [energies / thermal])
    assert found.members is not None
    assert found.committee is not None
    assert np.allclose(found.members[0], -thermal * stiffer, rtol=0.02, atol=2e-4)
    assert found.committee[0] == pytest.approx(thermal * np.std(stiffer, ddof=1), rel=0.02)
    assert found.committee[1] < 1e-3
    assert found.both[0] == pytest.approx(np.hypot(found.committee[0], found.statistical[0]))
    assert found.statistical[0] == pytest.approx(np.sqrt(2) * thermal / np.sqrt(len(x)), rel=0.4)


def test_frames_without_energies_count_for_the_statistical_error_alone() -> None:
    """Energies may be written less often than positions, and by some of the runs only."""
    rng = np.random.default_rng(9)
    x = rng.normal(size=(3000, 1))
    energies = np.full((3000, 2), np.nan)
    energies[::3] = 0.5 * x[::3] ** 2 * [1.0, 1.1]
    thinned = uncertainty([x[::3] ** 2], [energies[::3]])
    found = uncertainty([x**2, x**2], [energies, None])
    assert found.samples == 6000
    assert found.members is not None
    assert thinned.members is not None
    assert np.allclose(found.members, thinned.members, atol=1e-12)
    assert uncertainty([x]).committee is None
    assert np.array_equal(uncertainty([x]).both, uncertainty([x]).statistical)
