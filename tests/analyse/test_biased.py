"""Biased simulations against the double well that they were drawn from, and against pymbar's own errors."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymbar import MBAR
from scipy.integrate import quad
from scipy.signal import lfilter
from scipy.stats import norm

from beadwork.analyse.biased import Restraint
from beadwork.analyse.free_energy import free_energy
from beadwork.analyse.runs import Sampled
from beadwork.analyse.series import read_series, write_series
from beadwork.cli import main
from beadwork.errors import ConfigError

KELVIN = 300.0
KT = 8.31446e-3 * KELVIN
#: windows that reach from one well into the other
WINDOWS = [Restraint(centre, 60.0) for centre in np.linspace(-1.2, 1.2, 7)]


def well(x: np.ndarray | float) -> np.ndarray | float:
    """A double well in kT, with a barrier of 12 kT that no plain simulation crosses and minima of different depth."""
    return 12 * (x**2 - 1) ** 2 + 0.8 * x


def draw(window: Restraint, frames: int, rng: np.random.Generator, phi: float = 0.0) -> np.ndarray:
    """Its exact distribution under a restraint, by the inverse of its integral; φ > 0: of correlated frames."""
    grid = np.linspace(-2.2, 2.2, 20_001)
    energy = well(grid) + window.kappa / 2 / KT * (grid - window.centre) ** 2
    integral = np.cumsum(np.exp(energy.min() - energy))
    walk = lfilter([np.sqrt(1 - phi**2)], [1.0, -phi], rng.normal(size=frames + 200))[200:]
    return np.interp(norm.cdf(walk), integral / integral[-1], grid)


def sampled(x: np.ndarray, bias: np.ndarray | None = None, energies: np.ndarray | None = None) -> Sampled:
    """A run of these values."""
    return Sampled(np.arange(len(x)), {"x": x[:, None]}, energies, "none", KELVIN, 1, "centroid", 0.5, bias)


def draw_all(frames: int, seed: int, phi: float = 0.0) -> list[Sampled]:
    """So many frames of each window."""
    rng = np.random.default_rng(seed)
    return [sampled(draw(window, frames, rng, phi)) for window in WINDOWS]


def exact(place: float, width: float = 0.05) -> float:
    """-kT ln p in a bin, kJ/mol."""
    return float(-KT * np.log(quad(lambda x: np.exp(-well(x)), place - width / 2, place + width / 2)[0]))


def mean(power: int) -> float:
    """<x^n> without bias."""
    parts = [quad(lambda x, n=n: x**n * np.exp(-well(x)), -2.2, 2.2)[0] for n in (power, 0)]
    return parts[0] / parts[1]


ASKED = {"bins": 48, "reach": (-1.225, 1.175), "zero": -1.0, "at": (0.0, 1.0)}


def test_umbrella_windows_of_a_double_well() -> None:
    """Barrier, difference of the wells and mean, each the exact one within four errors; pymbar has the same values, and
    its own errors, which hold for such independent frames, are as large as ours."""
    pieces = draw_all(400, 31)
    found = free_energy(pieces, "x", restraints=WINDOWS, **ASKED)  # type: ignore[arg-type]
    for place in (0.0, 1.0):
        one = found.at[place]
        assert abs(one.value - exact(place) + exact(-1.0)) < 4 * one.statistical
        assert one.statistical < 2.5
    average = found.averages["mean"]
    assert abs(average.value - mean(1)) < 4 * average.statistical
    assert "7 ensembles joined by MBAR, of which neighbours share" in found.weighing
    x = np.concatenate([piece.values["x"][:, 0] for piece in pieces])
    reduced = np.array([window.kappa / 2 / KT * (x - window.centre) ** 2 for window in WINDOWS])
    mbar = MBAR(reduced, [400] * 7, solver_protocol="robust")
    theirs = mbar.compute_expectations(x, u_kn=np.zeros((1, len(x))))
    assert average.value == pytest.approx(float(theirs["mu"][0]), rel=1e-6)
    assert average.statistical == pytest.approx(float(theirs["sigma"][0]), rel=0.3)
    there = np.abs(x) < 0.025
    low = np.abs(x + 1) < 0.025
    perturbed = [np.where(inside, 0.0, 50.0) for inside in (there, low)]
    theirs = mbar.compute_perturbed_free_energies(np.array(perturbed))
    assert found.at[0.0].value == pytest.approx(-KT * float(theirs["Delta_f"][0, 1]), rel=1e-4)
    assert found.at[0.0].statistical == pytest.approx(KT * float(theirs["dDelta_f"][0, 1]), rel=0.3)


def test_pieces_of_one_window_and_members() -> None:
    """A window in two halves is that window; a member that is stiffer by k has F higher by k x² / 2 in each bin, about
    what it has at the zero, whatever window the frame is of."""
    pieces = draw_all(300, 32)
    stiffer = np.array([0.10, -0.04, -0.06])
    pieces = [replace(piece, energies=0.5 * np.outer(piece.values["x"] ** 2, stiffer) + 7.0) for piece in pieces]
    whole = free_energy(pieces, "x", restraints=WINDOWS, **ASKED)  # type: ignore[arg-type]
    halves, restraints = list(pieces), list(WINDOWS)
    for part in (slice(0, 150), slice(150, None)):
        one = pieces[3]
        assert one.energies is not None
        half = replace(one, steps=one.steps[part], values={"x": one.values["x"][part]}, energies=one.energies[part])
        halves.append(half)
        restraints.append(WINDOWS[3])
    del halves[3], restraints[3]
    found = free_energy(halves, "x", restraints=restraints, **ASKED)  # type: ignore[arg-type]
    assert np.allclose(found.energy, whole.energy, atol=1e-6)
    assert np.allclose(found.statistical, whole.statistical, rtol=0.4, atol=1e-9)
    assert whole.members is not None
    wanted = KT * 0.5 * np.outer(whole.x**2 - 1, stiffer)
    assert np.allclose(whole.members, wanted, atol=0.12)
    assert np.abs(whole.members[np.abs(whole.x) < 0.3] - wanted[np.abs(whole.x) < 0.3]).max() < 0.1


def test_a_bias_that_was_written(tmp_path: Path) -> None:
    """Frames of one simulation whose bias flattens the barrier, weighed by it alone; the same of its series, from a
    file; and a part of the bias that is not known is not taken for none."""
    rng = np.random.default_rng(33)
    # -U + x² / 0.8: what is left is a normal distribution over both wells
    x = rng.normal(size=8_000) * np.sqrt(0.4)
    piece = sampled(x, x**2 / 0.8 - well(x))
    asked = ASKED | {"reach": (-1.6, 1.6), "bins": 64}
    found = free_energy([piece], "x", **asked)  # type: ignore[arg-type]
    for place in (0.0, 1.0):
        assert abs(found.at[place].value - exact(place) + exact(-1.0)) < 4 * found.at[place].statistical
        assert found.at[place].statistical < 0.5
    assert abs(found.averages["mean"].value - mean(1)) < 4 * found.averages["mean"].statistical
    assert "weighed by exp(V/kT) of the bias that i-PI wrote, and are worth " in found.weighing
    write_series(tmp_path / "x.csv.gz", piece)
    again = free_energy([read_series(tmp_path / "x.csv.gz", ["x"])], "x", **asked)  # type: ignore[arg-type]
    assert np.allclose(again.energy, found.energy, atol=1e-3)
    assert piece.bias is not None
    torn = replace(piece, bias=np.where(np.arange(len(x)) == 7, np.nan, piece.bias))
    with pytest.raises(ConfigError, match="bias is not known at each step"):
        free_energy([torn], "x")
    # nothing tells one bias from the windows' several, whose weights have no common scale
    both = free_energy([piece, piece], "x", **asked)  # type: ignore[arg-type]
    assert "all 2 runs are taken to be under one bias: give --centres and --kappa" in both.weighing
    assert "one bias" not in found.weighing
    windows = [sampled(rng.normal(at, 0.05, size=500), np.full(500, 0.0)) for at in (-1.0, 0.0, 1.0)]
    biased = [
        replace(one, bias=200 * (one.values["x"][:, 0] - at) ** 2) for one, at in zip(windows, (-1, 0, 1), strict=True)
    ]
    biased[2] = replace(biased[2], bias=biased[2].bias + 40.0)
    with pytest.raises(ConfigError, match=r"1500 frames are worth [\d.]+, .* give --centres and --kappa") as refused:
        free_energy(biased, "x")
    assert "umbrella windows" in str(refused.value)
    with pytest.raises(ConfigError, match="bias is not known at each step"):
        free_energy([piece, sampled(x)], "x")


def test_windows_that_are_not_those_of_the_runs() -> None:
    """Centres in another order or kappa in other units than the bias that i-PI wrote, one centre too few, and windows
    that do not reach each other: none of them gives a curve without a word."""
    pieces = draw_all(100, 34)[:2]
    told = [
        replace(piece, bias=window.kappa / 2 / KT * (piece.values["x"][:, 0] - window.centre) ** 2)
        for piece, window in zip(pieces, WINDOWS, strict=False)
    ]
    free_energy(told, "x", restraints=WINDOWS[:2])
    with pytest.raises(ConfigError, match=r"makes .* kJ/mol at step \d+, and the bias that i-PI wrote is"):
        free_energy(told, "x", restraints=WINDOWS[1::-1])
    with pytest.raises(ConfigError, match="bias that i-PI wrote"):
        free_energy(told, "x", restraints=[replace(window, kappa=0.6) for window in WINDOWS[:2]])
    with pytest.raises(ConfigError, match="1 centres for 2 runs"):
        free_energy(pieces, "x", restraints=WINDOWS[:1])
    rng = np.random.default_rng(35)
    apart = [Restraint(centre, 900.0) for centre in (-1.0, 0.0)]
    with pytest.raises(ConfigError, match="simulations at -1 of x and 0 of x share not one frame"):
        free_energy([sampled(draw(window, 100, rng)) for window in apart], "x", restraints=apart)
    apart = [Restraint(centre, 200.0) for centre in (-1.0, -0.35)]
    far = free_energy([sampled(draw(window, 400, rng)) for window in apart], "x", restraints=apart)
    assert "they hang together by chance" in far.weighing


@pytest.mark.slow
def test_errors_of_windows_with_few_independent_frames() -> None:
    """Of 400 sets of windows with 110 independent frames each, 1000 that are correlated, 68 ± 5 % of the values lie
    within one error of the exact one: the difference of the wells (71 %), mean (67 %) and standard deviation (69 %)."""
    names = {"mean": mean(1), "standard deviation": np.sqrt(mean(2) - mean(1) ** 2)}
    within = []
    for seed in range(400):
        found = free_energy(draw_all(1000, 1000 + seed, 0.8), "x", restraints=WINDOWS, **ASKED)  # type: ignore[arg-type]
        pairs = [(found.at[1.0], exact(1.0) - exact(-1.0)), *((found.averages[name], names[name]) for name in names)]
        within.append([abs(one.value - wanted) < one.statistical for one, wanted in pairs])
    assert np.mean(within, axis=0) == pytest.approx(0.683, abs=0.05)


#: two atoms alone: 15 kJ/mol between r = 1.1 and 1.7 Å, and a restraint as a bias
PES = """
import numpy as np
from ipi.pes.dummy import Dummy_driver
__DRIVER_CLASS__, __DRIVER_NAME__ = "Pair", "pair"
KJ, BOHR = 1 / 2625.4996, 0.529177210903

class Pair(Dummy_driver):
    def __init__(self, centre=1.4, kappa=0.0, barrier=0.0, **kwargs):
        self.centre, self.kappa, self.barrier = centre, kappa, barrier
        super().__init__(**kwargs)

    def compute_structure(self, cell, pos):
        apart = pos[1] - pos[0]
        r = np.linalg.norm(apart)
        x = BOHR * r - self.centre
        shape = x**2 / 0.09 - 1
        energy = self.kappa / 2 * x**2 + self.barrier * shape**2
        slope = self.kappa * x + self.barrier * 2 * shape * 2 * x / 0.09
        force = slope * BOHR * KJ * apart / r
        return energy * KJ, np.array([force, -force]), np.zeros((3, 3)), ""
"""
PAIR = """<simulation verbosity='quiet'><output prefix='run'>
<properties stride='2' filename='out'> [ step, ensemble_bias{{electronvolt}} ] </properties>
<trajectory stride='2' filename='pos' format='xyz'> positions{{angstrom}} </trajectory></output>
<total_steps>{steps}</total_steps><prng><seed>{seed}</seed></prng>
<ffdirect name='pair'><pes>custom</pes><pes_path>pair.py</pes_path><parameters>{{barrier: 15}}</parameters></ffdirect>
{bias}
<system><initialize nbeads='1'><file mode='xyz'>init.xyz</file>
<velocities mode='thermal' units='kelvin'>300</velocities></initialize>
<forces><force forcefield='pair'/></forces>
<ensemble><temperature units='kelvin'>300</temperature><bias><force forcefield='bias'/></bias></ensemble>
<motion mode='dynamics'><dynamics mode='nvt'><timestep units='femtosecond'>0.5</timestep>
<thermostat mode='langevin'><tau units='femtosecond'>20</tau></thermostat></dynamics></motion></system>
</simulation>
"""


def no_plumed() -> bool:
    """Whether PLUMED's package or its library is missing, for a child that asks for it as i-PI would."""
    tried = subprocess.run([sys.executable, "-c", "import plumed; plumed.Plumed()"], capture_output=True)
    return tried.returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("biased_by", ["ffdirect", "ffplumed"])
def test_umbrella_windows_of_real_ipi(tmp_path: Path, biased_by: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Seven windows along a distance, held by a driver of this test or by PLUMED: U(r) - 2 kT ln r is what comes out of
    them, by the command, and a kappa in PLUMED's own units is refused as it is not the bias that i-PI wrote."""
    if biased_by == "ffplumed" and no_plumed():
        pytest.skip("PLUMED is not installed")
    centres = [f"{centre:.1f}" for centre in np.linspace(1.1, 1.7, 7)]
    ipi = Path(sys.executable).with_name("i-pi")
    for seed, centre in enumerate(centres):
        folder = tmp_path / centre
        folder.mkdir()
        (folder / "pair.py").write_text(PES)
        (folder / "plumed.dat").write_text(
            f"UNITS LENGTH=A\nd: DISTANCE ATOMS=1,2 NOPBC\nRESTRAINT ARG=d AT={centre} KAPPA=1200\n"
        )
        bias = f"<parameters>{{centre: {centre}, kappa: 1200}}</parameters></ffdirect>"
        bias = "<ffdirect name='bias'><pes>custom</pes><pes_path>pair.py</pes_path>" + bias
        if biased_by == "ffplumed":
            bias = (
                "<ffplumed name='bias'><file mode='xyz'>init.xyz</file><plumed_dat>plumed.dat</plumed_dat></ffplumed>"
            )
        (folder / "input.xml").write_text(PAIR.format(steps=2000, seed=seed + 1, bias=bias))
        (folder / "init.xyz").write_text(
            "2\n# CELL(abcABC): 30 30 30 90 90 90 cell{angstrom} positions{angstrom}\n"
            f"O 0.0 0.0 0.0\nH {centre} 0.0 0.0\n"
        )
        subprocess.run([sys.executable, ipi, "input.xml"], cwd=folder, check=True, capture_output=True, timeout=300)
    command = ["analyse", "free-energy", *(str(tmp_path / centre / "input.xml") for centre in centres)]
    command += ["--coordinate", "distance:O1,H1", "--centres", *centres, "--skip", "0.1", "--not-periodic"]
    assert main([*command, "--kappa", "120000"]) == 2
    assert "the bias that i-PI wrote is" in capsys.readouterr().err
    command += ["--kappa", "1200", "--range", "1.05", "1.75", "--bins", "28", "--zero", "1.1", "--at", "1.4", "1.7"]
    assert main([*command, "--out", str(tmp_path / "f")]) == 0
    assert "7 ensembles joined by MBAR" in capsys.readouterr().out
    with open(tmp_path / "f-averages.csv", encoding="utf-8") as stream:
        rows = {row["observable"]: row for row in csv.DictReader(stream)}
    for place, energy in (("1.4", 15.0), ("1.7", 0.0)):
        row = rows[f"F({place})"]
        exact_difference = energy - 2 * KT * np.log(float(place) / 1.1)
        assert abs(float(row["value"]) - exact_difference) < 4 * float(row["statistical"])
        assert float(row["statistical"]) < 2.5
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
