"""Averages of i-PI's outputs against a harmonic ring polymer's, which are known for any number of beads."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.analyse.free_energy import Estimate
from beadwork.analyse.properties import Observable, differences, properties
from beadwork.analyse.runs import open_run
from beadwork.cli import main
from beadwork.errors import ConfigError
from beadwork.units import BOHR
from support.exact_runs import BEADS, KT, OMEGA, RingPolymer, write_about, write_frames

MEV = 27211.386
GAS_CONSTANT = 8.314462618


def by_name(found: list[Observable]) -> dict[str, Observable]:
    """Each by its name."""
    return {one.name: one for one in found}


def free_modes(beads: int, kt: float) -> np.ndarray:
    """ω_k of the free ring polymer of P beads, atomic units."""
    return 2 * beads * kt * np.sin(np.arange(beads) * np.pi / beads)


def kinetic(beads: int, kt: float, omega: float) -> float:
    """Of one degree of freedom, the exact value for P beads: kT/2 Σ_k ω² / (ω_k² + ω²)."""
    return float(0.5 * kt * (omega**2 / (free_modes(beads, kt) ** 2 + omega**2)).sum())


def heat_capacity(beads: int, kt: float, omega: float) -> float:
    """Of one degree of freedom in k, from ln Z_P = -1/2 Σ_k ln(4 sin² + (βω/P)²) by finite differences."""

    def energy(beta: float) -> float:
        places = 4 * np.sin(np.arange(beads) * np.pi / beads) ** 2 + (beta * omega / beads) ** 2
        return float((beta * (omega / beads) ** 2 / places).sum())

    beta, step = 1 / kt, 1e-4 / kt
    return -(beta**2) * (energy(beta + step) - energy(beta - step)) / (2 * step)


def isotopes(beads: int, kt: float, omega: float, alpha: float) -> float:
    """Of one degree of freedom ln Z(α m) / Z(m) less the classical 1/2 ln α: its modes but the centroid's."""
    modes = free_modes(beads, kt)[1:] ** 2
    return float(0.5 * np.log((modes + omega**2) / (modes + omega**2 / alpha)).sum())


def test_the_formulas_of_this_test() -> None:
    """With many beads they are those of the quantum oscillator, with one the classical ones."""
    x = OMEGA / KT / 2
    assert kinetic(512, KT, OMEGA) == pytest.approx(OMEGA / 4 / np.tanh(x), rel=1e-3)
    assert heat_capacity(512, KT, OMEGA) == pytest.approx((x / np.sinh(x)) ** 2, rel=2e-2)
    quantum = np.log(np.sinh(x) / x) - np.log(np.sinh(x / np.sqrt(2)) / (x / np.sqrt(2)))
    assert isotopes(512, KT, OMEGA, 2.0) == pytest.approx(quantum, rel=1e-2)
    assert (kinetic(1, KT, OMEGA), heat_capacity(1, KT, OMEGA)) == pytest.approx((KT / 2, 1.0))


def test_a_harmonic_ring_polymer_by_what_ipi_writes(ring_polymer: RingPolymer) -> None:
    """Quantum kinetic energy, radius of gyration, potential and heat capacity, each the exact one of four beads within
    four errors, and the errors small enough for that to mean something."""
    found, said = properties([open_run(ring_polymer.folder)])
    assert said == []
    names = by_name(found)
    spread = KT * (OMEGA**2 / (free_modes(BEADS, KT) ** 2 + OMEGA**2)).sum()
    gyration = np.sqrt(3 * (ring_polymer.bead**2 - ring_polymer.centroid**2))
    capacity = GAS_CONSTANT * (3 * heat_capacity(BEADS, KT, OMEGA) + 1.5)  # the oxygen is free
    for name, wanted, unit, bound in (
        ("quantum kinetic energy of one H", MEV * 3 * kinetic(BEADS, KT, OMEGA), "meV", 0.02),
        ("radius of gyration of one H", gyration, "Å", 0.01),
        ("potential", MEV * 1e-3 * 1.5 * spread, "electronvolt", 0.02),
        ("heat capacity", capacity, "J/mol/K", 0.08),
        ("quantum kinetic energy of one H, y", MEV * kinetic(BEADS, KT, OMEGA), "meV", 0.03),
        ("ln isotope_zetasc(alpha=2;atom=H)", 3 * isotopes(BEADS, KT, OMEGA, 2.0), "", 0.05),
        ("ln isotope_zetatd(alpha=2;atom=H)", 3 * isotopes(BEADS, KT, OMEGA, 2.0), "", 0.3),
    ):
        one = names[name]
        assert one.unit == unit
        assert abs(one.estimate.value - wanted) < 4 * one.estimate.statistical, name
        assert one.estimate.statistical < bound * wanted
        assert one.samples == 2000
        assert one.independent > 800
    assert names["volume"].estimate.statistical == 0
    assert names["volume"].estimate.value == pytest.approx(8000.1)
    assert names["volume"].dependence == 0
    assert not {"step", "time", "conserved"} & set(names)


def test_the_committee_says_what_it_knows_and_no_more(ring_polymer: RingPolymer) -> None:
    """A potential stiffer by k has an average less by k, to first order, as it would be of a member; a radius of
    gyration less by what the members' ring polymers are smaller; estimators with forces in them get no number."""
    found = by_name(properties([open_run(ring_polymer.folder)])[0])
    bar = np.std(ring_polymer.stiffer, ddof=1)
    modes = free_modes(BEADS, KT)[1:]
    # d ln Σ 1 / (ω_k² + κ ω²) / dκ, halved for the root
    parts = 1 / (modes**2 + OMEGA**2)
    softer = 0.5 * OMEGA**2 * (parts**2).sum() / parts.sum()
    one = found["radius of gyration of one H"].estimate
    assert one.committee == pytest.approx(bar * softer * one.value, rel=0.25)
    assert one.both == pytest.approx(np.hypot(one.statistical, one.committee or 0))
    # the potential's own stiffness is an offset of its average, to first order that of its variance
    variance = KT**2 / 2 * 3 * (OMEGA**4 / (free_modes(BEADS, KT) ** 2 + OMEGA**2) ** 2).sum()
    assert found["potential"].estimate.committee == pytest.approx(bar * variance / KT * MEV * 1e-3, rel=0.2)
    assert found["quantum kinetic energy of one H"].estimate.committee is None
    assert found["heat capacity"].estimate.committee is None


def test_pieces_are_averaged_together(ring_polymer: RingPolymer, tmp_path: Path) -> None:
    """Two halves as two runs are the whole; what one of them lacks is said and left out; the beginning of each is."""
    halves = []
    rows = (ring_polymer.folder / "run.out").read_text().splitlines(True)
    for k in range(2):
        folder = tmp_path / f"half-{k}"
        folder.mkdir()
        write_about(folder, beads=BEADS, motions=["nvt"], properties={"run.out": {"stride": 10, "columns": []}})
        (folder / "run.out").write_text("".join(rows[:7] + rows[7 + 1000 * k : 1007 + 1000 * k]))
        halves.append(folder)
    shutil.copy(ring_polymer.folder / "run.r_gyration.xyz", halves[0])
    whole = by_name(properties([open_run(ring_polymer.folder)])[0])
    found, said = properties([open_run(folder) for folder in halves])
    names = by_name(found)
    for name in ("potential", "heat capacity"):
        assert names[name].estimate.value == pytest.approx(whole[name].estimate.value, rel=1e-6)
        assert names[name].estimate.statistical == pytest.approx(whole[name].estimate.statistical, rel=0.3)
    assert "radius of gyration of one H is not in every run, and is left out" in said
    assert "no committee's error: i-PI did not write the members' energies" in " ".join(said)
    later = by_name(properties([open_run(halves[0])], skip=2.5)[0])
    assert later["potential"].samples == 500
    with pytest.raises(ConfigError, match=r"no properties to average in .* after 500 ps"):
        properties([open_run(halves[1])], skip=500)
    # where its finite difference did not converge i-PI writes 0 twice, which is no energy
    table = [line.split() for line in (halves[1] / "run.out").read_text().splitlines()]
    for row in table[7::10]:
        row[4:6] = ["0.0", "0.0"]
    (halves[1] / "run.out").write_text("".join(" ".join(row) + "\n" for row in table))
    found, said = properties([open_run(halves[1])])
    one, all_of_it = by_name(found)["heat capacity"], whole["heat capacity"].estimate
    assert one.samples == 900
    assert abs(one.estimate.value - all_of_it.value) < 4 * one.estimate.statistical < 0.4 * all_of_it.value
    assert "at 100 steps i-PI's scaledcoords did not converge" in " ".join(said)


def test_isotopes_are_told_apart_by_their_names(tmp_path: Path) -> None:
    """HDO: what i-PI wrote of D is no part of an average over H, whose name it is not."""
    rng = np.random.default_rng(0)
    names = ["O", "H", "D"]
    wanted = np.array([0.050, 0.150, 0.110])  # eV
    parts = wanted[:, None] / 3 + 1e-4 * rng.normal(size=(40, 3, 3))
    write_about(tmp_path, beads=4)
    write_frames(tmp_path / "run.k.xyz", names, range(40), parts * 1e3 / MEV, "kinetic_cv", "energy", "electronvolt")
    path = tmp_path / "run.r.xyz"
    write_frames(path, names, range(40), np.sqrt(parts) / BOHR, "r_gyration", "length", "angstrom")
    found = by_name(properties([open_run(tmp_path)])[0])
    for name, energy in zip(names, wanted, strict=True):
        assert found[f"quantum kinetic energy of one {name}"].estimate.value == pytest.approx(1e3 * energy, rel=1e-2)
        assert found[f"radius of gyration of one {name}"].estimate.value == pytest.approx(np.sqrt(energy), rel=1e-2)


@pytest.mark.parametrize(
    ("about", "known"),
    [
        ({"motions": ["nvt"]}, True),
        ({"motions": ["nve"]}, False),
        ({"motions": ["npt"]}, False),
        ({"motions": ["nvt"], "biased": True}, False),
        ({}, False),
    ],
)
def test_heat_capacities_are_those_of_nvt(tmp_path: Path, about: dict[str, object], known: bool) -> None:
    """300 classical oscillators: 150 k by what their potential swings at constant temperature, and half of that at
    constant energy, which is no heat capacity; of an older record, which says no ensemble, nothing is known."""
    rng = np.random.default_rng(0)
    swings = 300 * rng.beta(150, 150, 4000) if about.get("motions") == ["nve"] else rng.chisquare(300, 4000) / 2
    write_about(tmp_path, beads=1, properties={"run.out": {"stride": 1, "columns": []}}, **about)
    head = "# column   1     --> step : s\n# column   2     --> potential : k\n"
    rows = "".join(f"{step} {KT * value:.12e}\n" for step, value in enumerate(swings))
    (tmp_path / "run.out").write_text(head + rows)
    found, said = properties([open_run(tmp_path)])
    one = by_name(found).get("heat capacity less its kinetic part")
    assert (one is not None) == known
    assert any(line.startswith("no heat capacity") for line in said) != known
    if one is not None:
        assert one.estimate.value == pytest.approx(150 * GAS_CONSTANT, rel=0.1)


@pytest.mark.parametrize("kind", ["isotope_scfep", "isotope_tdfep"])
def test_weights_of_several_runs_have_one_scale(tmp_path: Path, kind: str) -> None:
    """Kinetic energies with a scaled mass, as one run or cut into two: the ratio of all weighed energies to all weights
    by hand, though one run has all the large weights; a weight that --skip leaves out, too large for a number, or too
    small, changes nothing."""
    rng = np.random.default_rng(5)
    logs = rng.normal(0.0, 1.0, 400) + 800.0
    logs[::16] += 3.0
    logs[:200] -= 4.0
    energies = 0.005 + 8e-4 * logs - 0.64 + 1e-4 * rng.normal(size=400)
    name = f"{kind}(alpha=2;atom=H)"
    head = f"# column   1     --> step : s\n# cols.    2-8     --> {name} : k\n"

    def run(folder: Path, rows: slice) -> Path:
        folder.mkdir()
        write_about(folder, beads=4, properties={"run.out": {"stride": 1, "columns": []}})
        lines = [head, "0 0 0 0 0 1600.0 1600.0 1.0\n", "1 0 0 0 0 -1600.0 -1600.0 -1.0\n"]
        for step, (log, energy) in enumerate(zip(logs[rows], energies[rows], strict=True), 2):
            lines.append(f"{step} 0 0 0 0 {log:.10f} {log + np.log(abs(energy)):.10f} {np.sign(energy):.1f}\n")
        (folder / "run.out").write_text("".join(lines))
        return folder

    weights = np.exp(logs - 800)
    wanted = MEV * (weights * energies).sum() / weights.sum()
    whole = run(tmp_path / "whole", slice(None))
    halves = [run(tmp_path / "first", slice(200)), run(tmp_path / "second", slice(200, None))]
    skip = 2 * 0.5e-3  # ps, of the two first rows
    (one,), (both,) = (properties([open_run(path) for path in paths], skip)[0] for paths in ([whole], halves))
    assert one.estimate.value == pytest.approx(wanted, rel=1e-6)
    assert both.estimate.value == pytest.approx(wanted, rel=1e-6)
    assert both.estimate.statistical == pytest.approx(one.estimate.statistical, rel=0.3)


@pytest.mark.parametrize(
    ("about", "rows", "said"),
    [
        ({"temperature_K": 310.0}, "", "different temperatures: 300.0 and 310.0"),
        ({"beads": 8}, "", "different numbers of beads: 4 and 8"),
        ({}, "{angstrom3}", "different units of volume: angstrom3 and bohr3"),
        ({}, "0 ", "different strides: 10 and 20"),
    ],
)
def test_runs_of_two_kinds_are_not_averaged(
    ring_polymer: RingPolymer, tmp_path: Path, about: dict[str, object], rows: str, said: str
) -> None:
    """Classical with quantum, hot with cold, or numbers that mean something else."""
    write_about(tmp_path, **{"beads": BEADS, "properties": {"run.out": {"stride": 10, "columns": []}}} | about)
    lines = (ring_polymer.folder / "run.out").read_text().splitlines(True)
    if rows == "0 ":
        lines = lines[:7] + lines[7::2]
    (tmp_path / "run.out").write_text(
        "".join(lines).replace("{angstrom3}", "{bohr3}" if "{" in rows else "{angstrom3}")
    )
    with pytest.raises(ConfigError, match=said):
        properties([open_run(ring_polymer.folder), open_run(tmp_path)])


def test_properties_as_they_are_typed(
    ring_polymer: RingPolymer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table and the same in a CSV, with nothing where nothing is known; a picture; and of two phases the differences,
    with the errors of both."""
    assert main(["analyse", "properties", str(ring_polymer.folder), "--out", str(tmp_path / "p")]) == 0
    said = capsys.readouterr().out
    with open(tmp_path / "p.csv", encoding="utf-8") as stream:
        rows = {row["observable"]: row for row in csv.DictReader(stream)}
    found = by_name(properties([open_run(ring_polymer.folder)])[0])
    assert set(rows) == set(found)
    for name, row in rows.items():
        assert float(row["value"]) == pytest.approx(found[name].estimate.value, rel=1e-6)
        assert float(row["both"]) == pytest.approx(found[name].estimate.both, rel=1e-6)
        assert (row["committee"] == "") == (found[name].estimate.committee is None)
        assert name in said
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    name = "ln isotope_zetasc(alpha=2;atom=H)"
    apart = {one.name: one for one in differences(list(found.values()), [replace(found[name], estimate=THERE)])}
    assert list(apart) == [name]
    assert apart[name].estimate.value == pytest.approx(found[name].estimate.value - 1.0)
    assert apart[name].estimate.both == pytest.approx(np.hypot(found[name].estimate.statistical, 0.3))
    assert apart[name].estimate.committee is None
    command = ["analyse", "properties", str(ring_polymer.folder), "--against", str(ring_polymer.folder)]
    assert main([*command, "--out", str(tmp_path / "d")]) == 0
    with open(tmp_path / "d.csv", encoding="utf-8") as stream:
        assert {float(row["value"]) for row in csv.DictReader(stream)} == {0.0}
    with pytest.raises(ConfigError, match="no average in common"):
        differences(list(found.values()), [])
    # of 350 K, or classical: what differs would be that, and not the phase
    for other, what in (({"kelvin": 350.0}, "temperatures, K: 300.0 and 350"), ({"beads": 1}, "beads: 1 and 4")):
        with pytest.raises(ConfigError, match=f"different .*{what}"):
            differences(list(found.values()), [replace(found[name], **other)])  # type: ignore[arg-type]


#: what another phase has
THERE = Estimate(1.0, 0.3, None, 0.3)

HARMONIC = """<simulation verbosity='quiet' floatformat='%20.12e'>
<output prefix='run'>
<properties stride='2' filename='out'> [ step, temperature{{kelvin}}, kinetic_cv{{millielectronvolt}}(H), potential,
  kinetic_cv{{millielectronvolt}}(O), scaledcoords(fd_delta=-5e-3), isotope_zetasc(alpha=2;atom=H),
  isotope_zetatd(alpha=1.2;atom=H), isotope_scfep(alpha=2;atom=H), isotope_tdfep(alpha=1.2;atom=H) ] </properties>
<trajectory stride='4' filename='kin' format='xyz'> kinetic_cv{{electronvolt}} </trajectory>
<trajectory stride='4' filename='rg' format='xyz'> r_gyration{{angstrom}} </trajectory>
<trajectory stride='1' filename='vc' format='xyz'> v_centroid{{m/s}} </trajectory>
</output>
<total_steps>{steps}</total_steps><prng><seed>7</seed></prng>
<ffdirect name='harmonic'><pes>harmonic</pes><parameters>{{k1: {spring}}}</parameters></ffdirect>
<system><initialize nbeads='{beads}'><file mode='xyz'>init.xyz</file>
<velocities mode='thermal' units='kelvin'>300</velocities></initialize>
<forces><force forcefield='harmonic'/></forces>
<ensemble><temperature units='kelvin'>300</temperature></ensemble>
<motion mode='dynamics'><fixcom>False</fixcom><dynamics mode='nvt'><timestep units='femtosecond'>0.5</timestep>
<thermostat mode='pile_l'><tau units='femtosecond'>20</tau></thermostat></dynamics></motion></system>
</simulation>
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_ipi_of_harmonic_oscillators(tmp_path: Path) -> None:
    """i-PI's own run of two oscillators of 8 beads, read by its input alone: kinetic energies of each element by its
    properties and by its trajectory, radii of gyration, the heat capacity, and of heavier hydrogen the partition
    function and the kinetic energy by both estimators, are the exact ones of 8 beads."""
    beads, spring = 8, 0.2
    (tmp_path / "init.xyz").write_text(
        "2\n# CELL(abcABC): 30 30 30 90 90 90 cell{angstrom} positions{angstrom}\nO 0.01 0 0\nH 0.0 0.05 0\n"
    )
    (tmp_path / "input.xml").write_text(HARMONIC.format(steps=12_000, spring=spring, beads=beads))
    ipi = Path(sys.executable).with_name("i-pi")
    subprocess.run([sys.executable, ipi, "input.xml"], cwd=tmp_path, check=True, capture_output=True, timeout=1000)
    found, said = properties([open_run(tmp_path / "input.xml")], skip=0.5)
    names = by_name(found)
    assert any("did not write the members' energies" in line for line in said)
    total = 0.0
    for element, mass in (("H", 1837.47), ("O", 29156.9)):
        omega = np.sqrt(spring / mass)
        total += 3 * heat_capacity(beads, KT, omega)
        modes = free_modes(beads, KT)[1:]
        gyration = np.sqrt(3 * KT / mass * (1 / (modes**2 + omega**2)).sum()) * 0.529177
        for name, wanted in (
            (f"kinetic_cv({element})", MEV * 3 * kinetic(beads, KT, omega)),
            (f"quantum kinetic energy of one {element}", MEV * 3 * kinetic(beads, KT, omega)),
            (f"radius of gyration of one {element}", gyration),
        ):
            one = names[name].estimate
            assert abs(one.value - wanted) < 4 * one.statistical + 1e-3 * wanted, name
            assert one.statistical < 0.06 * wanted
    omega = np.sqrt(spring / 1837.47)
    for kind, alpha in (("sc", 2.0), ("td", 1.2)):
        softer = MEV * 3 * kinetic(beads, KT, omega / np.sqrt(alpha))
        for name, wanted in (
            (f"ln isotope_zeta{kind}(alpha={alpha:g};atom=H)", 3 * isotopes(beads, KT, omega, alpha)),
            (f"kinetic energy by isotope_{kind}fep(alpha={alpha:g};atom=H)", softer),
        ):
            one = names[name].estimate
            assert abs(one.value - wanted) < 4 * one.statistical + 1e-3 * wanted, name
            assert one.statistical < 0.1 * wanted
    one = names["heat capacity"].estimate
    assert abs(one.value - GAS_CONSTANT * total) < 4 * one.statistical
    assert one.statistical < 0.4 * one.value
    assert abs(names["temperature"].estimate.value - 300) < 4 * names["temperature"].estimate.statistical


GAS = """<simulation verbosity='quiet'><output prefix='run'>
<properties stride='10' filename='out'> [ step, volume{angstrom3}, density{g/cm3}, pressure_md{megapascal},
  cell_h{angstrom} ] </properties></output>
<total_steps>16000</total_steps><prng><seed>5</seed></prng><ffdirect name='gas'><pes>gas</pes></ffdirect>
<system><initialize nbeads='1'><file mode='xyz'>init.xyz</file>
<velocities mode='thermal' units='kelvin'>300</velocities></initialize><forces><force forcefield='gas'/></forces>
<ensemble><temperature units='kelvin'>300</temperature><pressure units='megapascal'>40</pressure></ensemble>
<motion mode='dynamics'><fixcom>False</fixcom><dynamics mode='npt'><timestep units='femtosecond'>1</timestep>
<thermostat mode='langevin'><tau units='femtosecond'>50</tau></thermostat><barostat mode='isotropic'>
<tau units='femtosecond'>100</tau><thermostat mode='langevin'><tau units='femtosecond'>50</tau></thermostat></barostat>
</dynamics></motion></system></simulation>
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_ipi_of_an_ideal_gas(tmp_path: Path) -> None:
    """Volume, density and pressure of six free atoms under a barostat: p(V) is V^6 exp(-PV/kT), so <V> is 7 kT/P, <1/V>
    P/6kT, and the pressure that is measured the one that was asked for; the cell is that of the volume."""
    places = np.random.default_rng(1).uniform(0, 9, (6, 3))
    lines = [f"H {x:.6f} {y:.6f} {z:.6f}" for x, y, z in places]
    head = ["6", "# CELL(abcABC): 9 9 9 90 90 90 cell{angstrom} positions{angstrom}"]
    (tmp_path / "init.xyz").write_text("\n".join([*head, *lines, ""]))
    (tmp_path / "input.xml").write_text(GAS)
    ipi = Path(sys.executable).with_name("i-pi")
    subprocess.run([sys.executable, ipi, "input.xml"], cwd=tmp_path, check=True, capture_output=True, timeout=1000)
    names = by_name(properties([open_run(tmp_path / "input.xml")], skip=0.5)[0])
    one_atom = 1.380649e-23 * 300 / 40e6  # kT / P, m³
    for name, wanted in (
        ("volume", 7 * one_atom * 1e30),
        ("density", 1.6735e-27 / one_atom * 1e-3),
        ("pressure_md", 40.0),
    ):
        one = names[name].estimate
        assert abs(one.value - wanted) < 4 * one.statistical, name
        assert one.statistical < 0.08 * wanted
    assert 1.0 < names["volume"].estimate.value / names["cell_h[0]"].estimate.value ** 3 < 1.2
