"""Free energies against what is known in closed form: a double well, a correlated walk, members of known stiffness."""

from __future__ import annotations

import bz2
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.signal import lfilter

from beadwork.analyse.free_energy import FreeEnergy, free_energy, read_curve
from beadwork.analyse.runs import Sampled
from beadwork.errors import ConfigError

KELVIN = 300.0
KT = 8.31446e-3 * KELVIN


def sampled(x: np.ndarray, energies: np.ndarray | None = None, **kwargs: object) -> Sampled:
    """A run that gave these values of a coordinate x, (F,) or (F, V)."""
    values = {"x": x if x.ndim == 2 else x[:, None]}
    about = {"kelvin": KELVIN, "beads": 1, "of": "centroid", "time_step": 0.5} | kwargs
    return Sampled(np.arange(len(x)), values, energies, "" if energies is not None else "none were written", **about)  # type: ignore[arg-type]


def well(x: np.ndarray | float) -> np.ndarray | float:
    """A double well with a slope, in kT: a barrier of 3 kT at 0 and minima of different depth."""
    return 3 * (x**2 - 1) ** 2 + 0.4 * x


def draw(count: int, rng: np.random.Generator) -> np.ndarray:
    """Its Boltzmann distribution, by rejection."""
    tries = rng.uniform(-2, 2, 20 * count)
    kept = tries[rng.uniform(size=len(tries)) < np.exp(-well(tries) - 0.5)]
    assert len(kept) >= count
    return kept[:count]


def exact_bins(found: FreeEnergy, width: float) -> np.ndarray:
    """-kT ln of the probability in each bin, zero in the bin that is zero in `found`."""
    p = [quad(lambda x: np.exp(-well(x)), x - width / 2, x + width / 2)[0] for x in found.x]
    energy = -KT * np.log(p)
    return energy - energy[found.energy == 0]


def test_a_double_well_of_known_free_energy() -> None:
    """Every bin lies about -kT ln p as its error says, from independent samples of the Boltzmann distribution."""
    rng = np.random.default_rng(11)
    runs = [sampled(draw(8000, rng)) for _ in range(5)]
    found = free_energy(runs, "x", bins=40, reach=(-1.6, 1.6), at=(-1.0, 0.0, 1.0, 1.8))
    assert found.samples == 40_000
    off = (found.energy - exact_bins(found, 0.08)) / np.where(found.statistical > 0, found.statistical, 1)
    assert np.abs(off).max() < 4
    assert found.statistical[found.x > 0].min() > 0.02
    barrier = found.at[0.0].value - found.at[-1.0].value
    assert barrier == pytest.approx(KT * (well(0.0) - well(-1.0)), abs=0.15)  # type: ignore[arg-type]
    assert np.isnan(found.at[1.8].value)
    assert found.committee is None
    assert found.gap == "none were written"


def test_errors_of_a_correlated_run_are_not_too_small() -> None:
    """x of an autoregressive process with 39 samples a correlation time is exactly normal, so F is known: over 60 runs
    bins scatter about it as their errors say, with the zero where the user puts it, and so do the averages."""
    rng = np.random.default_rng(12)
    phi, length = 0.95, 8000
    sigma = 1 / np.sqrt(1 - phi**2)
    off, averages = [], []
    for _ in range(60):
        x = lfilter([1.0], [1.0, -phi], rng.normal(size=length + 500))[500:] / sigma
        found = free_energy([sampled(x)], "x", bins=20, reach=(-2, 2), zero=0.1, at=(-0.9, 0.9))
        off.append([(found.at[p].value - KT * (p**2 - 0.01) / 2) / found.at[p].statistical for p in (-0.9, 0.9)])
        one = found.averages
        wanted = {"mean": 0.0, "standard deviation": 1.0, "root mean square": 1.0}
        averages.append([(one[name].value - value) / one[name].statistical for name, value in wanted.items()])
    assert np.sqrt(np.mean(np.square(off))) == pytest.approx(1, abs=0.25)
    assert np.sqrt(np.mean(np.square(averages), axis=0)) == pytest.approx(1, abs=0.3)


def test_a_member_of_another_stiffness() -> None:
    """V_m - V = k_m x² / 2 in kT, so F_m - F is that, in each bin, whatever is sampled; the bar is the members'
    standard deviation. What they are apart at all times is none."""
    rng = np.random.default_rng(13)
    stiffer = np.array([0.10, -0.04, -0.06])
    x = rng.normal(size=30_000)
    energies = 0.5 * np.outer(x**2, stiffer) + np.array([5.0, 0.0, -7.0])
    energies[::2] = np.nan  # written at every second step
    found = free_energy([sampled(x, energies)], "x", bins=40, reach=(-2, 2), zero=0.0, at=(1.5,))
    assert found.members is not None
    assert found.committee is not None
    assert np.allclose(found.members, KT * 0.5 * np.outer(found.x**2, stiffer), atol=0.012)
    bar = KT * 0.5 * 1.5**2 * np.std(stiffer, ddof=1)
    assert found.at[1.5].committee == pytest.approx(bar, rel=0.03)
    assert found.at[1.5].both == pytest.approx(np.hypot(found.at[1.5].statistical, bar), rel=0.03)
    width = found.averages["standard deviation"].committee
    assert width == pytest.approx(0.5 * np.std(stiffer, ddof=1), rel=0.05)  # σ = 1 / √(1 + k)


def test_both_sides_of_a_symmetric_coordinate_count() -> None:
    """x and -x of a run that stayed on one side: a curve that is even, of the mean 0, and p no larger than 1."""
    x = np.abs(np.random.default_rng(14).normal(size=4000))
    found = free_energy([sampled(x)], "x", bins=30, symmetric=True)
    assert np.allclose(found.x, -found.x[::-1])
    assert np.allclose(found.energy, found.energy[::-1])
    assert found.averages["mean"].value == pytest.approx(0)
    assert found.averages["root mean square"].value == pytest.approx(1, abs=0.05)
    exact = free_energy([sampled(np.concatenate([x, -x]))], "x", bins=30)
    assert np.allclose(found.energy, exact.energy)


def test_all_values_of_a_frame_count() -> None:
    """Eight beads that move together are no eight times more samples."""
    rng = np.random.default_rng(15)
    one = rng.normal(size=(4000, 1))
    alone, eight = (free_energy([sampled(x)], "x", bins=20, reach=(-2, 2)) for x in (one, np.repeat(one, 8, axis=1)))
    assert np.allclose(alone.energy, eight.energy)
    assert np.allclose(alone.statistical, eight.statistical)
    assert alone.independent == pytest.approx(eight.independent)


def test_what_one_excursion_has_seen_is_not_known() -> None:
    """Sixty frames in a row at 3, in one block of the run: no F there and no bar, in a bin or at a place. With a second
    such excursion, in another block, there is one, and a bar to go with it. The other bins stay what they were."""
    x = np.clip(np.random.default_rng(18).normal(size=6400), -2, 2)
    once, twice = x.copy(), x.copy()
    once[3210:3270] = 3.0
    twice[[*range(3210, 3270), *range(5210, 5270)]] = 3.0
    asked = {"bins": 35, "reach": (-3.5, 3.5), "zero": 0.0, "at": (0.5, 3.0)}
    first, second = (free_energy([sampled(one)], "x", **asked) for one in (once, twice))  # type: ignore[arg-type]
    assert first.x.max() < 2.2
    assert np.isnan([first.at[3.0].value, first.at[3.0].statistical, first.at[3.0].both]).all()
    assert first.at[0.5].statistical > 0
    assert second.x.max() == pytest.approx(3.0)
    p0 = np.mean(np.abs(twice) < 0.1)
    assert second.at[3.0].value == pytest.approx(-KT * np.log(120 / 6400 / p0), rel=1e-4)
    # of two blocks of 32 that have it
    assert second.at[3.0].statistical == pytest.approx(KT / np.sqrt(2), rel=0.1)
    with pytest.raises(ConfigError, match=r"no bin from 2\.5 to 3\.5 was visited in 2 blocks"):
        free_energy([sampled(once)], "x", 5, (2.5, 3.5))


def test_zero_is_the_mean_over_a_range() -> None:
    """F of a flat distribution is 0 about the mean over a range, where the lowest bin would put all others above it;
    the bar of the difference from a mean over ten bins is smaller than that from one of them by √(1.1 / 2)."""
    rng = np.random.default_rng(19)
    x = rng.uniform(-1, 1, size=(40, 2000))
    over, lowest, one = (
        [free_energy([sampled(run)], "x", bins=20, reach=(-1, 1), zero=zero, at=(0.55,)).at[0.55] for run in x]
        for zero in ((-1.0, 0.0), None, -0.55)
    )
    assert abs(np.mean([each.value for each in over])) < 0.1
    assert np.mean([each.value for each in lowest]) > 0.3
    bars = [np.sqrt(np.mean([each.statistical**2 for each in found])) for found in (over, one)]
    assert bars[0] / bars[1] == pytest.approx(np.sqrt(1.1 / 2), rel=0.05)
    with pytest.raises(ConfigError, match="never about 5 to 6"):
        free_energy([sampled(x[0])], "x", zero=(5.0, 6.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kelvin": 310.0}, "different temperatures: 300.0 and 310.0"),
        ({"beads": 32}, "different numbers of beads: 1 and 32"),
        ({"of": "beads"}, "different distributions: beads and centroid"),
    ],
)
def test_runs_of_two_kinds_are_not_averaged(change: dict[str, object], said: str) -> None:
    """Classical with quantum, or hot with cold, has no meaning."""
    x = np.random.default_rng(16).normal(size=100)
    with pytest.raises(ConfigError, match=said):
        free_energy([sampled(x), sampled(x, **change)], "x")


def test_what_cannot_be_had_is_refused() -> None:
    """A zero or a range that nothing was sampled in, a coordinate that does not move, other committees or strides."""
    x = np.random.default_rng(17).normal(size=(100, 1))
    for kwargs, said in (
        ({"zero": 9.0, "reach": (-10.0, 10.0)}, "never about 9"),
        ({"reach": (50.0, 60.0)}, "never from 50 to 60"),
        ({"reach": (1.0, -1.0)}, "from 1 to -1 is empty"),
        ({"bins": 1}, "1 bins has no shape"),
    ):
        with pytest.raises(ConfigError, match=said):
            free_energy([sampled(x)], "x", **kwargs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="x is 3 throughout"):
        free_energy([sampled(np.full(100, 3.0))], "x")
    with pytest.raises(ConfigError, match="numbers of members: 2 and 3"):
        free_energy([sampled(x, np.zeros((100, 2))), sampled(x, np.zeros((100, 3)))], "x")
    every_second = Sampled(2 * np.arange(100), {"x": x}, None, "", KELVIN, 1, "centroid", 0.5)
    with pytest.raises(ConfigError, match="different strides"):
        free_energy([sampled(x), every_second], "x")


def test_a_grid_of_plumed_is_integrated(tmp_path: Path) -> None:
    """F(a, b) = a² + 2 b² + a b in kT: over a it is (2 - 1/4) b², over b (1 - 1/8) a²; names of derivatives that are
    not there, as sum_hills leaves them, shift nothing; and it may be compressed."""
    a = b = np.linspace(-6, 6, 241)
    lines = ["#! FIELDS one two file.free der_one der_two", "#! SET periodic_one false"]
    lines += [f"{x:.4f} {y:.4f} {KT * (x**2 + 2 * y**2 + x * y):.6f}" for y in b for x in a]
    path = tmp_path / "fes.bz2"
    path.write_bytes(bz2.compress("\n".join(lines).encode()))
    x, energy = read_curve(path, KELVIN)
    inside = np.abs(x) < 2
    assert np.allclose(energy[inside], KT * 1.75 * x[inside] ** 2, atol=2e-3)
    x, energy = read_curve(path, KELVIN, "one", scale=10.0)
    assert np.allclose(energy[np.abs(x) < 20], KT * 0.875 * (x[np.abs(x) < 20] / 10) ** 2, atol=2e-3)
    with pytest.raises(ConfigError, match="has no field three; it has one, two"):
        read_curve(path, KELVIN, "three")


def test_a_curve_of_two_columns(tmp_path: Path) -> None:
    """A text of x and F; made even where the coordinate is; what is none is refused."""
    path = tmp_path / "curve.txt"
    x = np.linspace(-1, 1, 21)
    np.savetxt(path, np.column_stack([x, KT * x**2 + 3 + 0.2 * KT * x]), header="dc F/(kJ/mol)")
    found, energy = read_curve(path, KELVIN)
    assert np.allclose(found, x)
    assert np.allclose(energy, KT * (x**2 + 0.2 * x) - (KT * (x**2 + 0.2 * x)).min())
    _, even = read_curve(path, KELVIN, symmetric=True)
    wanted = KT * (x**2 - np.log(np.cosh(0.2 * x)))
    assert np.allclose(even, wanted - wanted.min(), atol=1e-9)
    for text in ("no numbers\n", "1\n2\n", "", "1 2\n3\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="two columns of numbers"):
            read_curve(path, KELVIN)
