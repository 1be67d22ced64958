"""Thermodynamic integration against harmonic oscillators, whose free energies are known for any number of beads."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.analyse.integrate import Integral, _derivative, between_masses, between_potentials
from beadwork.analyse.runs import open_run
from beadwork.cli import main
from beadwork.errors import ConfigError
from beadwork.report.run import RunFolder
from support.exact_runs import HYDROGEN, KT, OMEGA, write_about, write_energies

KJ_MOL = 2625.49964
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: from the lightest to 16 times as heavy
MASSES = (1.0, 1.7, 3.0, 6.0, 16.0)
#: of members, about 1; and Hartree, the constant parts of their energies
STIFFER, OFFSETS = np.array([0.03, -0.02, 0.01]), np.array([0.0002, -0.0003, 0.0001])
#: Hartree, between the two potentials wherever the atom is
CONSTANT = 0.01


def modes(beads: int) -> np.ndarray:
    """ω_k of the free ring polymer, atomic units."""
    return 2 * beads * KT * np.sin(np.arange(beads) * np.pi / beads)


def helmholtz(beads: int, omega: float) -> float:
    """F of three degrees of freedom, kJ/mol, but for what does not depend on ω: exact for P beads."""
    return float(KJ_MOL * 1.5 * KT * np.log(modes(beads) ** 2 + omega**2).sum())


def excess(beads: int, omega: float) -> float:
    """The same less the classical one, whatever the mass: only the centroid's mode is left out."""
    free = modes(beads)[1:] ** 2
    return float(KJ_MOL * 1.5 * KT * np.log((free + omega**2) / free).sum())


def write(
    folder: Path, beads: int, spring: float, mass: float, between: float, seed: int, share: float | None = None
) -> RunFolder:
    """A run of one hydrogen in a well of this spring (atomic units), drawn exactly. between: of another spring, less
    that at λ = 0, what ∂V/∂λ is made of; as what i-PI would have written of two components, and of the kinetic energy.
    share: with which the members of that part count in the potential; None: there are none.
    """
    frames = 600
    rng = np.random.default_rng(seed)
    free = modes(beads)[:, None, None] ** 2
    sigma = np.sqrt(KT / mass / (free + spring / mass))
    squares = sigma**2 * rng.normal(size=(beads, frames, 3)) ** 2  # of the mean over beads
    all_beads = squares.sum(axis=(0, 2))
    component = 0.5 * between * all_beads
    kinetic = 1.5 * KT + 0.5 * spring * squares[1:].sum(axis=(0, 2))
    folder.mkdir(parents=True)
    composition = {"H": 1}
    properties = {"run.out": {"stride": 10, "columns": []}}
    about = {} if share is None else {"committee_share": share}
    write_about(folder, beads=beads, properties=properties, composition=composition, **about)
    for bead in range(beads) if share else ():  # of a force without a weight i-PI writes no extras
        write_energies(folder, range(0, 10 * frames, 10), np.outer(component, 1 + STIFFER) + OFFSETS, bead)
    # Hartree in eV
    written = 27.211386 * (component + 0.5 + CONSTANT)
    rows = zip(10 * np.arange(frames), written, np.full(frames, 0.5), kinetic, strict=True)
    names = ["step", "pot_component_raw(1){electronvolt}", "pot_component_raw(0)", "kinetic_cv(H)"]
    lines = [f"# column   {k + 1}     --> {name} : words" for k, name in enumerate(names)]
    lines += [" ".join(f"{value:.12e}" for value in row) for row in rows]
    (folder / "run.out").write_text("\n".join(lines) + "\n")
    return open_run(folder)


def apart(wanted: list[float]) -> float:
    """How far members are apart, in the way of beadwork."""
    return float(np.std(wanted, ddof=1))


def check(found: Integral, wanted: float, largest: float) -> None:
    """The integral, and MBAR where there is one, within four errors."""
    for one in (found.total, found.mbar):
        if one is not None:
            assert abs(one.value - wanted) < 4 * one.statistical
            assert 0.05 * largest < one.statistical < largest


@pytest.mark.parametrize("beads", [1, 4])
def test_between_two_springs(tmp_path: Path, beads: int) -> None:
    """From one spring to one three times as stiff, classical and of four beads: kT ln of the ratio of their partition
    functions, by the integral and by MBAR; a constant between the potentials is in both. Members make the spring at
    λ = 1 stiffer by a few per cent, and lift it by constants: the committee's error is the spread of their exact
    differences, apart from the statistical one."""
    soft = HYDROGEN * OMEGA**2
    runs = [
        write(tmp_path / f"{x}", beads, soft * (1 + 2 * x), HYDROGEN, 2 * soft, k, x) for k, x in enumerate(LAMBDAS)
    ]
    found = between_potentials(runs, LAMBDAS, "pot_component_raw(1)", "pot_component_raw(0)")
    check(found, helmholtz(beads, np.sqrt(3) * OMEGA) - helmholtz(beads, OMEGA) + KJ_MOL * CONSTANT, 0.3)
    lifted = zip(STIFFER, OFFSETS, strict=True)
    exact = [helmholtz(beads, np.sqrt(3 + 2 * s) * OMEGA) + KJ_MOL * constant for s, constant in lifted]
    for one in (found.total, found.mbar):
        assert one is not None
        assert one.committee == pytest.approx(apart(exact), rel=0.05)
        assert one.both == pytest.approx(np.hypot(one.statistical, one.committee))
    assert not found.gap
    nowhere = between_potentials([runs[0], runs[0]], (0, 1), "pot_component_raw(1)")
    assert "no part in the potential" in nowhere.gap
    assert nowhere.total.committee is None


def test_members_of_an_isotope(tmp_path: Path) -> None:
    """Members that make the well stiffer at every mass: the spread of the exact differences between two masses,
    without classical part and constants; of the classical limit it is not known, and why is said."""
    spring = HYDROGEN * OMEGA**2
    runs = [write(tmp_path / f"{m}", 4, spring, m * HYDROGEN, spring, k, 1.0) for k, m in enumerate(MASSES)]
    found = between_masses(runs, MASSES, "kinetic_cv(H)")
    exact = [excess(4, np.sqrt(1 + s) * OMEGA / 4) - excess(4, np.sqrt(1 + s) * OMEGA) for s in STIFFER]
    assert found.total.committee == pytest.approx(apart(exact), rel=0.1)
    limit = between_masses(runs, MASSES, "kinetic_cv(H)", True)
    assert limit.total.committee is None
    assert "classical limit" in limit.gap


def test_a_contracted_component_counts_whole(tmp_path: Path) -> None:
    """i-PI divides what it writes of a component on one bead by the four beads of the system: ∂V/∂λ is four times that,
    by the record of a run and by i-PI's own input."""
    run = write(tmp_path / "a", 4, HYDROGEN * OMEGA**2, HYDROGEN, 0.0, 0)
    about = run.about | {"component_beads": [4, 1]}
    both = ("pot_component_raw(0)", "pot_component_raw( index=1 )")
    named = {"pot_component_raw(0)": run.properties[both[0]], "pot_component_raw(index=1)": run.properties[both[0]]}
    named["pot_component_raw(1;bead=0)"] = named["pot_component_raw(0)"]
    told = replace(run, about=about, properties=named)
    base, delta = (between_potentials([told, told], (0, 1), name).total.value for name in both)
    assert base == pytest.approx(0.5 * KJ_MOL, rel=1e-6)
    assert delta == pytest.approx(4 * base, rel=1e-9)
    assert between_potentials([told, told], (0, 1), "pot_component_raw(1; bead=0)").total.value == pytest.approx(base)
    # runs in another order than their λ: what each was run with is on record
    runs = [replace(told, about=about | {"component_weights": [1.0, weight]}) for weight in (0.25, 0.5)]
    assert between_potentials(runs, (0.25, 0.5), both[1]).total.value == pytest.approx(delta / 4)
    with pytest.raises(ConfigError, match=r"raw\( index=1 \) has the weight 0.25 in the run of .*, and its λ is 0.5"):
        between_potentials(runs, (0.5, 0.25), both[1])
    # the other force: its energy is part of ∂V/∂λ where its weight is 1 - λ, and there alone
    with pytest.raises(ConfigError, match=r"pot_component_raw\(0\) has the weight 1 .* λ is 0.25: .* --less out"):
        between_potentials(runs, (0.25, 0.5), both[1], both[0])
    mixed = [replace(told, about=about | {"component_weights": [1 - one, one]}) for one in (0.25, 0.5)]
    assert between_potentials(mixed, (0.25, 0.5), both[1], both[0]).total.value == pytest.approx((delta - base) / 4)
    with pytest.raises(ConfigError, match=r"force 0 goes from 0.5 to 0.75 .* give --less pot_component_raw\(0\)"):
        between_potentials(mixed, (0.25, 0.5), both[1])


CONTRACTED = """<simulation verbosity='low'>
 <output prefix='run'>
  <properties filename='out'> [ step, pot_component(1){electronvolt}, pot_component_raw(1) ] </properties>
 </output>
 <total_steps>2</total_steps>
 <ffdirect name='a'><pes>harmonic</pes><parameters>{k1: 1.0}</parameters></ffdirect>
 <system>
  <initialize nbeads='4'>
   <file mode='xyz'> init.xyz </file><velocities mode='thermal' units='kelvin'> 300 </velocities>
  </initialize>
  <forces><force forcefield='a'/><force forcefield='a' nbeads='2'/></forces>
  <ensemble><temperature units='kelvin'>300</temperature></ensemble>
  <motion mode='dynamics'>
   <dynamics mode='nve'><timestep units='femtosecond'>0.25</timestep></dynamics>
  </motion>
 </system>
</simulation>
"""


@pytest.mark.slow
def test_a_contracted_component_as_ipi_writes_it(tmp_path: Path) -> None:
    """What i-PI writes of a component on two of four beads, with its weight of 1 and without, is one number here."""
    (tmp_path / "init.xyz").write_text(
        "2\n# CELL(abcABC): 10 10 10 90 90 90 positions{angstrom} cell{angstrom}\nH 0.1 0.2 0.3\nH 1 1 1\n"
    )
    (tmp_path / "input.xml").write_text(CONTRACTED)
    ipi = Path(sys.executable).with_name("i-pi")
    subprocess.run([ipi, "input.xml"], cwd=tmp_path, check=True, capture_output=True, timeout=100)
    run = open_run(tmp_path / "input.xml")
    assert (run.about["component_beads"], run.about["component_weights"]) == ([4, 2], [1.0, 1.0])
    raw, whole = (_derivative(run, name, None, 0.0) for name in ("pot_component_raw(1)", "pot_component(1)"))
    assert len(raw) == 3
    assert raw == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("classical", [False, True])
def test_between_two_masses(tmp_path: Path, classical: bool) -> None:
    """From hydrogen to one 16 times as heavy, and on to the classical limit: what the ring polymer of four beads is
    above its classical free energy."""
    spring = HYDROGEN * OMEGA**2
    runs = [write(tmp_path / f"{m}", 4, spring, m * HYDROGEN, 0.0, k) for k, m in enumerate(MASSES)]
    found = between_masses(runs, MASSES, "kinetic_cv(H)", classical)
    heavy = 0.0 if classical else excess(4, OMEGA / 4)
    check(found, heavy - excess(4, OMEGA), 0.2)
    assert found.mbar is None
    # with the argument by its name, as i-PI takes it too
    both = "kinetic_cv(H)", "kinetic_cv(atom=H)"
    named = [replace(run, properties={both[1]: run.properties[both[0]]}) for run in runs]
    assert between_masses(named, MASSES, both[1], classical).total.value == found.total.value
    # by the record of what was run
    told = [replace(run, about=run.about | {"masses": {"H": 2.016 * m}}) for run, m in zip(runs, MASSES, strict=True)]
    assert between_masses(told, MASSES, "kinetic_cv(H)", classical).total.value == found.total.value
    with pytest.raises(ConfigError, match=r"atoms called H have the masses 2.016, .* those given are 1.7, 1, 3"):
        between_masses(told, (*MASSES[1::-1], *MASSES[2:]), "kinetic_cv(H)", classical)
    # pieces of one mass are averaged, in whatever order they are named
    again = between_masses([*runs, runs[0]][::-1], [*MASSES, MASSES[0]][::-1], "kinetic_cv(H)", classical)
    assert again.total.value == pytest.approx(found.total.value)
    assert again.total.statistical <= found.total.statistical


def test_integrals_as_they_are_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table, CSV files with the points and the total, and a picture; what does not fit together is refused."""
    soft = HYDROGEN * OMEGA**2
    runs = [write(tmp_path / f"{x}", 1, soft * (1 + 2 * x), HYDROGEN, 2 * soft, k) for k, x in enumerate(LAMBDAS)]
    command = ["analyse", "integrate", *(str(run.folder) for run in runs), "--of", "pot_component_raw(1)"]
    lambdas = ["--lambdas", *map(str, LAMBDAS)]
    assert main([*command, *lambdas, "--less", "pot_component_raw(0)", "--out", str(tmp_path / "t")]) == 0
    said = capsys.readouterr().out
    assert "5 ensembles joined by MBAR, of which neighbours share" in said
    assert "by the trapezoidal rule it is" in said
    assert "no committee's error, or not of every run: i-PI did not write the members' energies" in said
    found = between_potentials(runs, LAMBDAS, "pot_component_raw(1)", "pot_component_raw(0)")
    with open(tmp_path / "t-total.csv", encoding="utf-8") as stream:
        totals = [float(row["value"]) for row in csv.DictReader(stream)]
    assert found.mbar is not None
    assert totals == pytest.approx([found.total.value, found.mbar.value], rel=1e-6)
    with open(tmp_path / "t.csv", encoding="utf-8") as stream:
        points = [float(row["dF/dx (kJ/mol)"]) for row in csv.DictReader(stream)]
    assert points == pytest.approx([one.value for one in found.integrand], rel=1e-6)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, *lambdas, "--classical"]) == 2
    for arguments, words in (
        ((runs, LAMBDAS[:3], "kinetic_cv(H)"), "3 places for 5 runs"),
        ((runs[:2], (0.5, 0.5), "kinetic_cv(H)"), "all runs are at one place"),
        ((runs, LAMBDAS, "pot_component_raw(2)"), r"no property pot_component_raw\(2\)"),
        # half of ∂V/∂λ, of one component whose weight goes from 0 to 1
        (
            (runs, LAMBDAS, "pot_component( 1 )"),
            r"by the weight.* i-PI write pot_component_raw\( 1 \), which is without",
        ),
        ((runs, LAMBDAS, "potential", "pot_component(0)"), r"write pot_component_raw\(0\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            between_potentials(*arguments)  # type: ignore[arg-type]
    write_about(runs[0].folder, composition={"H": "many"})
    with pytest.raises(ConfigError, match="has H atoms = many, which cannot be"):
        open_run(runs[0].folder)
    for masses, of, words in (
        ((0.0, *MASSES[1:]), "kinetic_cv(H)", "a mass of 0 is none"),
        (MASSES, "kinetic_cv", "no property kinetic_cv into"),
        (MASSES, "kinetic_md(H)", r"kinetic_md\(H\) is no quantum kinetic energy.*give one of kinetic_cv"),
        (MASSES, "kinetic_cv(H", r"kinetic_cv\(H is no property of i-PI's .*Incorrect format"),
    ):
        with pytest.raises(ConfigError, match=words):
            between_masses(runs, masses, of)


HARMONIC = """<simulation verbosity='quiet' floatformat='%20.12e'><output prefix='run'>
<properties stride='4' filename='out'> [ step, pot_component_raw(1){{electronvolt}}, kinetic_cv(H) ] </properties>
</output>
<total_steps>{steps}</total_steps><prng><seed>{seed}</seed></prng>
<ffdirect name='a'><pes>harmonic</pes><parameters>{{k1: 0.1}}</parameters></ffdirect>
<ffdirect name='b'><pes>harmonic</pes><parameters>{{k1: 0.2}}</parameters></ffdirect>
<system><initialize nbeads='{beads}'><file mode='xyz'>init.xyz</file>
<masses mode='manual' units='atomic_unit'>[{mass}]</masses>
<velocities mode='thermal' units='kelvin'>300</velocities></initialize>
<forces><force forcefield='a'/><force forcefield='b' weight='{weight}'/></forces>
<ensemble><temperature units='kelvin'>300</temperature></ensemble>
<motion mode='dynamics'><fixcom>False</fixcom><dynamics mode='nvt'><timestep units='femtosecond'>0.5</timestep>
<thermostat mode='pile_l'><tau units='femtosecond'>20</tau></thermostat></dynamics></motion></system></simulation>
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_ipi_by_two_paths(tmp_path: Path) -> None:
    """Between two potentials that i-PI weighs by λ, of four beads: the integral over λ, and round about by way of the
    classical limit of both, that is over masses at λ = 0, over λ of one bead, and back over masses at λ = 1. All are
    the exact ones, and so the two ways agree."""
    beads, seed = 4, 0

    def run(name: str, beads: int, weight: float, mass: float) -> RunFolder:
        nonlocal seed
        seed += 1
        folder = tmp_path / name
        folder.mkdir()
        text = HARMONIC.format(beads=beads, weight=weight, mass=mass * HYDROGEN, steps=2400, seed=seed)
        (folder / "input.xml").write_text(text)
        (folder / "init.xyz").write_text(
            "1\n# CELL(abcABC): 30 30 30 90 90 90 cell{angstrom} positions{angstrom}\nH 0.0 0.05 0\n"
        )
        ipi = Path(sys.executable).with_name("i-pi")
        subprocess.run([sys.executable, ipi, "input.xml"], cwd=folder, check=True, capture_output=True, timeout=300)
        return open_run(folder / "input.xml")

    of, lambdas, masses = "pot_component_raw(1)", (0.0, 0.5, 1.0), (1.0, 3.0, 12.0)
    quantum = [run(f"q{x}", beads, x, 1.0) for x in lambdas]
    single = [run(f"c{x}", 1, x, 1.0) for x in lambdas]
    ends = [[quantum[2 * x], *(run(f"m{x}-{m}", beads, x, m) for m in masses[1:])] for x in (0, 1)]
    omegas = [np.sqrt(spring / HYDROGEN) for spring in (0.1, 0.3)]
    direct = between_potentials(quantum, lambdas, of, skip=0.1)
    check(direct, helmholtz(beads, omegas[1]) - helmholtz(beads, omegas[0]), 1.5)
    classical = between_potentials(single, lambdas, of, skip=0.1)
    check(classical, helmholtz(1, omegas[1]) - helmholtz(1, omegas[0]), 1.5)
    limits = [between_masses(runs, masses, "kinetic_cv(H)", True, skip=0.1) for runs in ends]
    for limit, omega in zip(limits, omegas, strict=True):
        check(limit, -excess(beads, omega), 1.5)
    assert classical.mbar is not None
    about = limits[0].total.value + classical.mbar.value - limits[1].total.value
    error = np.linalg.norm([one.total.statistical for one in (direct, classical, *limits)])
    assert abs(about - direct.total.value) < 4 * error
