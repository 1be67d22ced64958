"""Ring polymers of harmonic vibrations, held to formulas that know nothing of the step, and to i-PI itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ipi.utils.nmtransform import mk_nm_matrix, mk_rs_matrix

from beadwork.doctor import harmonic
from beadwork.doctor.harmonic import (
    BOLTZMANN,
    HBAR,
    WAVENUMBER,
    Modes,
    Plan,
    averages,
    compress,
    errors,
    kept,
    quantum,
    springs,
    stable,
    without_barriers,
)
from beadwork.doctor.plan_xml import colored_noise
from beadwork.errors import SimulationError

PIGLET = Path(__file__).parents[2] / "inputs" / "water-piglet" / "input.xml"
#: fs; an error of the time step below 1e-5
TINY = 0.01


def modes(*wavenumbers: float, delta: float = 0.0) -> Modes:
    """Vibrations of hydrogen alone; delta: the part of Δ in the curvature of each."""
    omega2 = (np.array(wavenumbers) * WAVENUMBER) ** 2
    return Modes(omega2, delta * omega2, {"H": np.full(len(omega2), 1 / len(omega2))}, {"H": 1})


@pytest.mark.parametrize("beads", [1, 3, 8, 32])
def test_beads_without_an_error_of_the_time_step(beads: int) -> None:
    """Kinetic energy, potential and squared force are the sums over the modes of a ring polymer."""
    here, kt = modes(200, 1600, 3500), BOLTZMANN * 300
    spring = 2 * beads * kt / HBAR * np.sin(np.pi * np.arange(beads) / beads)
    each = kt / 2 * np.array([(w2 / (spring**2 + w2)).sum() for w2 in here.omega2])
    kinetic, potential, force = averages(here, Plan(beads, TINY), 300)
    np.testing.assert_allclose(kinetic, each, rtol=1e-5)
    np.testing.assert_allclose(potential, each, rtol=1e-5)
    np.testing.assert_allclose(force, 2 * here.omega2 * each, rtol=1e-5)


def test_many_beads_are_exact() -> None:
    """The limit of many beads is the quantum energy, which is zero-point energy and temperature at its ends."""
    cold, hot = modes(3500), modes(1.0)
    assert quantum(cold.omega2, 300)[0] == pytest.approx(HBAR * 3500 * WAVENUMBER / 4, rel=1e-6)
    assert quantum(hot.omega2, 300)[0] == pytest.approx(BOLTZMANN * 300 / 2, rel=1e-5)
    assert errors(cold, Plan(512, TINY), 300)["kinetic H"] == pytest.approx(0, abs=2e-4)


def test_curvatures_of_both_signs() -> None:
    """An instantaneous mode that is no minimum is continued, x cot x; one that cannot be is left out, and told."""
    x = np.sqrt(-modes(400).omega2[0] * -1) * HBAR / (2 * BOLTZMANN * 300)
    assert quantum(-modes(400).omega2, 300)[0] == pytest.approx(BOLTZMANN * 150 * x / np.tan(x), rel=1e-9)
    inverted = Modes(-modes(400).omega2, np.zeros(1), {"H": np.ones(1)}, {"H": 1})
    assert averages(inverted, Plan(128, TINY), 300)[0][0] == pytest.approx(quantum(inverted.omega2, 300)[0], rel=1e-3)
    omega2 = np.concatenate([-modes(1300).omega2, -modes(400).omega2, modes(3000).omega2])
    some = Modes(
        omega2, np.zeros(3), {"H": np.array([0.2, 0.2, 0.6]), "O": np.array([0.0, 0.5, 0.5])}, {"H": 2, "O": 1}
    )
    rest, barriers = without_barriers(some, 300)
    assert barriers == pytest.approx([1300])
    assert rest.omega2.tolist() == omega2[1:].tolist()
    assert rest.weights["H"].tolist() == pytest.approx([0.25, 0.75])
    assert rest.weights["O"].tolist() == [0.5, 0.5]
    with pytest.raises(SimulationError, match="curvatures of up to 1300i cm"):
        without_barriers(Modes(omega2, np.zeros(3), {"H": np.array([0.6, 0.2, 0.2])}, {"H": 1}), 300)


def test_economised_beads_hold_what_is_published_of_them() -> None:
    """Of radii of gyration up to the wavenumber they are fitted for, the root mean square error of 16 is below that of
    32 ordinary ones (arXiv:2607.06414); of kinetic energies too, though not of those at the very end."""
    x = np.linspace(100, 3900, 60)
    water, beta = modes(*x), 1 / (BOLTZMANN * 300)
    half = beta * HBAR * x * WAVENUMBER / 2
    gyration = (half / np.tanh(half) - 1) / beta / water.omega2
    error = {}
    for kind, beads in (("eco", 16), ("ordinary", 32)):
        plan = Plan(beads, TINY, kind, highest=4000)
        square = sum(1 / (spring**2 + water.omega2) for spring in springs(plan, 300)[1:]) / beta
        kinetic = averages(water, plan, 300)[0] / quantum(water.omega2, 300)
        error[kind] = [np.sqrt(np.mean((ratio - 1) ** 2)) for ratio in (square / gyration, kinetic)]
    assert error["eco"][0] < error["ordinary"][0]
    assert error["eco"][1] < error["ordinary"][1]
    assert springs(Plan(1, TINY, "eco", highest=4000), 300).tolist() == [0.0]


@pytest.mark.parametrize(("beads", "contracted"), [(8, 4), (8, 3), (9, 4), (16, 6), (8, 1), (8, 8)])
def test_contraction_is_that_of_ipi(beads: int, contracted: int) -> None:
    """What is kept is what i-PI's matrix keeps, and what it keeps is whole."""
    to_modes, contract = mk_nm_matrix(beads), mk_rs_matrix(beads, contracted)
    projector = to_modes @ contract.T @ contract @ to_modes.T * beads / contracted
    np.testing.assert_allclose(projector, np.diag(kept(beads, contracted)), atol=1e-12)


def test_the_time_step_of_one_bead() -> None:
    """BAOAB samples a harmonic potential exactly, OBABO widens it by 1 - (omega dt / 2)²."""
    here = modes(3500)
    exact = BOLTZMANN * 150
    ratio = 1 - here.omega2[0] * 1.5**2 / 4
    assert averages(here, Plan(1, 1.5), 300)[1][0] == pytest.approx(exact, rel=1e-9)
    assert averages(here, Plan(1, 1.5, splitting="obabo"), 300)[1][0] == pytest.approx(exact / ratio, rel=1e-9)


@pytest.mark.parametrize("splitting", ["baoab", "obabo"])
@pytest.mark.parametrize("inner", [1, 2, 3])
def test_friction_does_not_matter(splitting: str, inner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With white noise averages do not depend on the centroid's friction, so that the input's tau need not be known."""
    here, plan = modes(200, 1600, 3500, delta=0.1), Plan(8, 1.0, inner=inner, splitting=splitting)
    usual = averages(here, plan, 300)
    monkeypatch.setattr(harmonic, "CENTROID_TAU", 3.0)
    for one, other in zip(averages(here, plan, 300), usual, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("inner", [2, 3])
def test_multiple_time_steps_agree_with_single_ones(inner: int) -> None:
    """Inner steps change nothing where Δ is nothing (with OBABO, whose thermostat leaves what they sample as it is),
    and nothing where all steps are small."""
    alone = averages(modes(1600, 3500), Plan(4, 0.5, splitting="obabo"), 300)[0]
    apart = averages(modes(1600, 3500), Plan(4, 0.5, inner=inner, splitting="obabo"), 300)[0]
    np.testing.assert_allclose(apart, alone, rtol=1e-9)
    some = modes(1600, 3500, delta=0.1)
    small = averages(some, Plan(4, TINY, inner=inner), 300)[0]
    np.testing.assert_allclose(small, averages(some, Plan(4, TINY), 300)[0], rtol=1e-5)


def test_what_is_not_stable() -> None:
    """A step that is longer than 2 / omega, and one of Δ in resonance with a vibration, have no or wrong averages."""
    assert np.isnan(averages(modes(3500), Plan(1, 4.0), 300)[1]).all()
    assert not stable(Plan(1, 4.0), 300, 3500, 0.0)
    assert stable(Plan(1, 0.5), 300, 3500, 0.0)
    fastest = (3500 * WAVENUMBER) ** 2
    assert stable(Plan(1, 0.5, inner=4), 300, 3500, 0.05 * fastest)
    assert not stable(Plan(1, 0.5, inner=12), 300, 3500, 0.5 * fastest)


def test_colored_noise_of_the_shipped_input() -> None:
    """Six beads with the published matrices give vibrations up to 4170 cm^-1 their quantum energy, where six ordinary
    ones lack half of it."""
    here = modes(100, 1000, 1600, 3500, 4170)
    noise = colored_noise(PIGLET, 300)
    exact = quantum(here.omega2, 300)
    for part in averages(here, Plan(6, 0.02, "piglet", noise=noise), 300)[:2]:
        assert np.abs(part / exact - 1).max() < 2e-3
    assert averages(here, Plan(6, 0.02), 300)[0][-1] / exact[-1] < 0.55


def test_vibrations_put_together() -> None:
    """Errors of many vibrations are those of a few that stand for them."""
    rng = np.random.default_rng(0)
    omega2 = (rng.uniform(50, 3800, 400) * WAVENUMBER) ** 2
    weights = {name: w / w.sum() for name, w in (("H", rng.random(400)), ("O", rng.random(400)))}
    many = Modes(omega2, 0.03 * omega2, weights, {"H": 2, "O": 1})
    few = compress(many)
    assert len(few.omega2) < 65
    plan = Plan(16, 0.5, inner=2, contracted=4)
    for name, error in errors(many, plan, 300).items():
        assert errors(few, plan, 300)[name] == pytest.approx(error, abs=5e-4)


INPUT = """<simulation verbosity='low'><output prefix='s'><properties stride='4' filename='out'>
[kinetic_cv{{electronvolt}}, potential{{electronvolt}}]</properties></output><total_steps>{steps}</total_steps>
<prng><seed>7</seed></prng>
<ffdirect name='base'><pes>harmonic</pes><parameters>{{k1: 0.42}}</parameters></ffdirect>
<ffdirect name='delta'><pes>harmonic</pes><parameters>{{k1: 0.06}}</parameters></ffdirect>
<system><initialize nbeads='{plan.beads}'><file mode='xyz'>init.xyz</file>
<velocities mode='thermal' units='kelvin'>300</velocities></initialize>
<forces><force forcefield='base'>{base}</force>
<force forcefield='delta' nbeads='{plan.delta_beads}'>{delta}</force></forces>
<ensemble><temperature units='kelvin'>300</temperature></ensemble>
<normal_modes propagator='{propagator}'>{eco}</normal_modes>
<motion mode='dynamics'><fixcom>False</fixcom><dynamics mode='nvt' splitting='{plan.splitting}'>
<timestep units='femtosecond'>{plan.outer}</timestep>{levels}{thermostat}</dynamics></motion></system></simulation>"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        (Plan(8, 1.5, "eco", cayley=True, highest=4000), 3000),
        (Plan(8, 1.0, splitting="obabo"), 3000),
        (Plan(8, 1.0, inner=3, contracted=4), 2000),
        (Plan(6, 1.0, "piglet"), 3000),
        (Plan(6, 1.0, "piglet", inner=4, contracted=1), 1500),
    ],
    ids=["eco", "obabo", "mts", "piglet", "piglet-mts"],
)
def test_ipi_finds_the_same(plan: Plan, steps: int, tmp_path: Path) -> None:
    """900 oscillators of 3550 cm^-1 in i-PI: its kinetic and potential energies are these, within their error bars and
    a fifth of a per cent, with time steps whose errors are several per cent."""
    atoms = 300
    rng = np.random.default_rng(1)
    lines = "".join("H {:f} {:f} {:f}\n".format(*rng.normal(0, 0.07, 3)) for _ in range(atoms))
    head = "# CELL(abcABC): 100 100 100 90 90 90 cell{angstrom} positions{angstrom}"
    (tmp_path / "init.xyz").write_text(f"{atoms}\n{head}\n{lines}")
    levels = plan.inner > 1
    thermostat = "<thermostat mode='pile_l'><tau units='femtosecond'>100</tau></thermostat>"
    if plan.springs == "piglet":
        text = PIGLET.read_text()
        thermostat = text[text.index("<thermostat") : text.index("</thermostat>") + len("</thermostat>")]
        plan = replace(plan, noise=colored_noise(PIGLET, 300))
    (tmp_path / "input.xml").write_text(
        INPUT.format(
            plan=plan,
            steps=steps,
            base="<mts_weights>[0, 1]</mts_weights>" if levels else "",
            delta="<mts_weights>[1, 0]</mts_weights>" if levels else "",
            propagator="cayley" if plan.cayley else "exact",
            eco="<frequencies style='eco' units='inversecm'>[4000]</frequencies>" if plan.springs == "eco" else "",
            levels=f"<nmts>[1, {plan.inner}]</nmts>" if levels else "",
            thermostat=thermostat,
        )
    )
    subprocess.run([Path(sys.executable).parent / "i-pi", "input.xml"], cwd=tmp_path, check=True, capture_output=True)
    table = np.loadtxt(tmp_path / "s.out")
    blocks = np.array([block.mean(axis=0) for block in np.array_split(table[len(table) // 5 :], 10)]) / (3 * atoms)
    # a hydrogen of 1.00794 dalton, as i-PI has it; atomic units of time and mass
    omega2 = np.array([0.48 / (1.00794 * 1822.888486) / 0.02418884326**2])
    here = Modes(omega2, omega2 * 0.06 / 0.48, {"H": np.ones(1)}, {"H": 1})
    told = averages(here, plan, 300)
    for k in (0, 1):
        bar = blocks[:, k].std(ddof=1) / np.sqrt(len(blocks))
        assert blocks[:, k].mean() == pytest.approx(told[k][0], abs=3 * bar + 2e-3 * told[k][0])


#: an O-H vibrator in a Morse potential, as in q-TIP4P/F water: eV, Å^-1, eV fs²/Å²
DEPTH, ALPHA, REDUCED = 5.034, 2.287, 15.9994 * 1.00794 / (15.9994 + 1.00794) / 9.64853322e-3


def morse(plan: Plan, temperature: float, steps: int = 4000, many: int = 400) -> tuple[float, float]:
    """meV, and its error: the kinetic energy of the vibrator, by the steps of `harmonic` with its force for a linear
    one."""
    depth, alpha, mass = DEPTH, ALPHA, REDUCED
    thermal, beads, half = BOLTZMANN * temperature, plan.beads, plan.timestep / 2
    rng, transform, frequencies = np.random.default_rng(0), mk_nm_matrix(beads), springs(plan, temperature)
    free = np.array([harmonic._free(w, half, plan.cayley) for w in frequencies])[..., None]
    baths = [harmonic._thermostat(plan, temperature, w, k, 2 * half) for k, w in enumerate(frequencies)]
    damp = np.array([bath[0][1:, 1:] for bath in baths])
    noise = []
    for _, covariance in baths:
        values, vectors = np.linalg.eigh(covariance[1:, 1:])
        noise.append(vectors * np.sqrt(np.clip(values, 0, None)))
    q, p = np.zeros((beads, many)), np.zeros((beads, damp.shape[1], many))
    p[:, 0] = rng.normal(size=q.shape) * np.sqrt(beads * thermal)
    force, found = np.zeros_like(q), []

    def drift() -> None:
        q[:], p[:, 0] = free[:, 0, 0] * q + free[:, 0, 1] * p[:, 0], free[:, 1, 0] * q + free[:, 1, 1] * p[:, 0]

    for step in range(steps):
        p[:, 0] += half * force
        drift()
        p = damp @ p + np.array(noise) @ rng.normal(size=p.shape)
        drift()
        x = transform.T @ q / np.sqrt(mass)
        gradient = 2 * depth * alpha * (1 - np.exp(-alpha * x)) * np.exp(-alpha * x)
        force = -transform @ gradient / np.sqrt(mass)
        p[:, 0] += half * force
        if step > steps // 10:
            found.append(500 * (thermal + ((x - x.mean(axis=0)) * gradient).mean()))
    blocks = [block.mean() for block in np.array_split(np.array(found), 20)]
    return float(np.mean(blocks)), float(np.std(blocks, ddof=1) / np.sqrt(20))


@pytest.mark.slow
def test_colored_noise_is_off_where_a_vibration_is_anharmonic() -> None:
    """What `beadwork plan` says that it does not know: of one O-H vibrator PIGLET's kinetic energy is 1 to 3 % too low,
    where six beads are within 0.4 % of every harmonic one; economised beads are within 0.8 %."""
    # of the ground state, -m dE/dm of E = ħω/2 - (ħω)²/16D; at 300 K there is no other
    quantum_of_energy = HBAR * np.sqrt(2 * DEPTH * ALPHA**2 / REDUCED)
    exact = 1000 * (quantum_of_energy / 4 - quantum_of_energy**2 / (16 * DEPTH))
    eco = [morse(Plan(beads, 0.5, "eco", highest=4000.0), 300.0) for beads in (24, 32)]
    piglet = morse(Plan(6, 0.5, "piglet", noise=colored_noise(PIGLET, 300)), 300.0)
    assert max(bar for _, bar in (*eco, piglet)) < 0.003 * exact
    assert [value for value, _ in eco] == pytest.approx([exact, exact], rel=0.008)
    assert 0.01 < 1 - piglet[0] / exact < 0.03
