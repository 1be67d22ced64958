"""What i-PI wrote of a ring polymer whose distributions are known in closed form, read and averaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from beadwork.analyse.coordinate import parse
from beadwork.analyse.free_energy import free_energy
from beadwork.analyse.properties import properties
from beadwork.analyse.response import infrared
from beadwork.analyse.runs import alike, one_state, open_run, sample
from beadwork.analyse.spectrum import spectrum
from beadwork.errors import ConfigError
from beadwork.report.committee import read_committee
from beadwork.report.uncertainty import uncertainty
from beadwork.units import BOHR
from support.exact_runs import BEADS, KELVIN, KT, RingPolymer, write_about, write_energies, write_extra, write_frames

DISTANCE = parse("distance:O1,H1")
KJ = 8.31446e-3 * KELVIN


@pytest.mark.parametrize("of", ["centroid", "beads"])
def test_centroid_and_beads_have_each_their_own_distribution(ring_polymer: RingPolymer, of: str) -> None:
    """Maxwell's with the exact width of each, which at this frequency differ by a third: averages and free energies
    from i-PI's files, within four errors."""
    sigma = ring_polymer.centroid if of == "centroid" else ring_polymer.bead
    assert ring_polymer.bead > 1.3 * ring_polymer.centroid
    run = sample(open_run(ring_polymer.folder), [DISTANCE], of)
    assert run.values[DISTANCE.text].shape == (2000, 1 if of == "centroid" else BEADS)
    near, far = sigma, 2.2 * sigma
    found = free_energy([run], DISTANCE.text, bins=40, zero=1.4 * sigma, at=(near, far))
    for place in (near, far):
        wanted = KJ * ((place**2 - (1.4 * sigma) ** 2) / 2 / sigma**2 - 2 * np.log(place / 1.4 / sigma))
        assert abs(found.at[place].value - wanted) < 4 * found.at[place].statistical + 0.02
        assert found.at[place].statistical < 0.6
    for name, wanted in (("mean", 2 * np.sqrt(2 / np.pi) * sigma), ("root mean square", np.sqrt(3) * sigma)):
        assert abs(found.averages[name].value - wanted) < 4 * found.averages[name].statistical
        assert found.averages[name].statistical < 0.03 * sigma


def test_members_weigh_the_ring_polymer_by_the_mean_over_its_beads(ring_polymer: RingPolymer) -> None:
    """A stiffer well about the centroid: <q²> is kT / k, so its root mean square is less by half of what k is more."""
    run = sample(open_run(ring_polymer.folder), [DISTANCE])
    found = free_energy([run], DISTANCE.text)
    wanted = 0.5 * np.std(ring_polymer.stiffer, ddof=1) * found.averages["root mean square"].value
    assert found.averages["root mean square"].committee == pytest.approx(wanted, rel=0.15)
    assert found.gap == ""
    assert found.members is not None
    assert found.members.shape[1] == 3


def test_a_centroid_that_was_written_is_that_of_the_beads(ring_polymer: RingPolymer, tmp_path: Path) -> None:
    """Both ways give the same; a step of which a bead is missing is none; without any of them it is said what to ask
    of i-PI, and neither is taken for the other."""
    whole = sample(open_run(ring_polymer.folder), [DISTANCE])
    folder = tmp_path / "written"
    folder.mkdir()
    write_about(folder, beads=BEADS)
    for of, said in (("centroid", "x_centroid"), ("beads", "positions{angstrom}")):
        with pytest.raises(ConfigError, match=said):
            sample(open_run(folder), [DISTANCE], of)
    frames = np.zeros((2000, 2, 3))
    frames[:, 1] = ring_polymer.positions.mean(axis=1)
    write_frames(folder / "run.c.xyz", ["O", "H"], ring_polymer.steps, frames, "x_centroid")
    written = sample(open_run(folder), [DISTANCE])
    assert np.allclose(written.values[DISTANCE.text], whole.values[DISTANCE.text], atol=2e-5)
    with pytest.raises(ConfigError, match="no positions of the beads"):
        sample(open_run(folder), [DISTANCE], "beads")
    shutil.copy(ring_polymer.folder / "run.pos_0.xyz", folder)
    (folder / "run.c.xyz").unlink()
    with pytest.raises(ConfigError, match="no positions of the centroid"):
        sample(open_run(folder), [DISTANCE])


@pytest.mark.parametrize("of", ["centroid", "beads"])
def test_of_one_bead_the_centroid_is_the_bead(tmp_path: Path, of: str) -> None:
    """An input whose number of beads was set to 1 still writes x_centroid, and needs no other output."""
    write_about(tmp_path, beads=1)
    places = np.array([[[0.0, 0.0, 0.0], [x, 0.0, 0.0]] for x in (1.0, 2.0)]) / BOHR
    write_frames(tmp_path / "run.c.xyz", ["O", "H"], [0, 10], places, "x_centroid")
    run = sample(open_run(tmp_path), [DISTANCE], of, periodic=False)
    assert run.values[DISTANCE.text][:, 0] == pytest.approx([1, 2], abs=1e-4)


def test_beads_across_a_face_of_the_cell(tmp_path: Path) -> None:
    """Beads that i-PI wrote into the cell, one at each face, have their centroid at the face and not in the middle;
    where there are no images, i-PI has a cell all the same, and the beads are where they were written."""
    write_about(tmp_path, beads=2, periodic=True)
    for bead, x in enumerate((0.2, 9.6)):
        places = np.array([[[5.0, 0.0, 0.0], [x, 0.0, 0.0]]] * 3) / BOHR
        write_frames(tmp_path / f"run.pos_{bead}.xyz", ["O", "H"], [0, 1, 2], places, side=10.0, bead=bead)
    assert sample(open_run(tmp_path), [DISTANCE]).values[DISTANCE.text] == pytest.approx(4.9, abs=1e-4)
    far = sample(open_run(tmp_path), [DISTANCE], "beads", periodic=False).values[DISTANCE.text]
    assert far == pytest.approx(np.array([[4.8, 4.6]] * 3), abs=1e-4)
    assert sample(open_run(tmp_path), [DISTANCE], periodic=False).values[DISTANCE.text] == pytest.approx(0.1, abs=1e-4)
    write_about(tmp_path, beads=2, periodic=False)
    assert sample(open_run(tmp_path), [DISTANCE]).values[DISTANCE.text] == pytest.approx(0.1, abs=1e-4)


def test_time_at_the_beginning_is_left_out_and_energies_belong_to_their_step(tmp_path: Path) -> None:
    """--skip is in ps; energies of every third frame stand beside these and no others; what was given up at a restart
    (40, 50 and 70) does not count."""
    write_about(tmp_path, time_step_fs=0.5)
    steps = [*range(0, 60, 10), 70, 40, 50, 60]
    places = np.zeros((len(steps), 2, 3))
    places[:, 1, 0] = np.arange(len(steps)) + 1
    write_frames(tmp_path / "run.pos_0.xyz", ["O", "H"], steps, places / BOHR)
    write_energies(tmp_path, [0, 30, 60], np.array([[1.0, 2.0], [3.0, 5.0], [7.0, 7.0]]))
    run = sample(open_run(tmp_path), [DISTANCE], skip=0.01, periodic=False)
    assert run.steps.tolist() == [20, 30, 40, 50, 60]
    assert run.values[DISTANCE.text][:, 0] == pytest.approx([3, 4, 8, 9, 10], abs=1e-4)
    assert run.energies is not None
    assert np.isfinite(run.energies[:, 0]).tolist() == [False, True, False, False, True]
    assert run.energies[[1, 4]] * KT == pytest.approx(np.array([[3.0, 5.0], [7.0, 7.0]]))
    with pytest.raises(ConfigError, match="no frames after 1 ps"):
        sample(open_run(tmp_path), [DISTANCE], skip=1)


INPUT = """<simulation><output prefix='run'>
<properties stride='10' filename='out'> [ step, potential{electronvolt} ] </properties></output>
<ffdirect name='harmonic'><pes>harmonic</pes><parameters>{k1: 1.0}</parameters></ffdirect>
<system><initialize nbeads='4'><file mode='xyz'>run.pos_0.xyz</file></initialize>
<forces><force forcefield='harmonic'/></forces><ensemble><temperature units='kelvin'>300</temperature></ensemble>
<motion mode='dynamics'><dynamics mode='nvt'><timestep units='femtosecond'>0.5</timestep>
<thermostat mode='pile_g'><tau units='femtosecond'>100</tau></thermostat></dynamics></motion></system></simulation>
"""


@pytest.mark.slow
def test_an_ipi_that_beadwork_did_not_serve(ring_polymer: RingPolymer, tmp_path: Path) -> None:
    """By its input alone, wherever the command is typed: temperature, beads and time step are those of the XML, and the
    outputs lie beside it."""
    for path in ring_polymer.folder.glob("run.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "input.xml").write_text(INPUT)
    run, other = open_run(tmp_path / "input.xml"), open_run(ring_polymer.folder)
    assert run.properties["potential"].values.tolist() == other.properties["potential"].values.tolist()
    found, wanted = sample(run, [DISTANCE], skip=1.0), sample(other, [DISTANCE], skip=1.0)
    assert (found.kelvin, found.beads, found.time_step) == (pytest.approx(300), 4, pytest.approx(0.5))
    assert np.array_equal(found.values[DISTANCE.text], wanted.values[DISTANCE.text])
    assert found.energies is not None
    assert np.allclose(found.energies, wanted.energies)


@pytest.mark.parametrize(
    ("about", "column", "said"),
    [
        (
            {"smotions": ["remd"], "temperature_K": None},
            "",
            "replicas exchange their ensembles, so an average .* of no",
        ),
        ({"motions": ["nvt", "t_ramp"], "temperature_K": None}, "", "the temperature is ramped"),
        ({"motions": ["p_ramp"]}, "", "the pressure is ramped"),
        (
            {"smotions": ["metad"]},
            "",
            "the bias grows as it runs .*of no state; compare with what PLUMED",
        ),
        ({}, "ensemble_temperature{kelvin}", "goes from 150 to 600 kelvin"),
    ],
)
def test_what_is_at_no_one_temperature_is_not_averaged(
    tmp_path: Path, about: dict[str, object], column: str, said: str
) -> None:
    """Replica exchange and ramps: the input's temperature is that of the start, and an average would be at none."""
    write_about(tmp_path, **{"properties": {"run.out": {"stride": 1, "columns": []}}} | about)
    head = f"# column   1     --> step : s\n# column   2     --> {column or 'potential'} : k\n"
    (tmp_path / "run.out").write_text(head + "0 150.0\n1 600.0\n2 150.0\n")
    with pytest.raises(ConfigError, match=said):
        open_run(tmp_path)


def test_a_field_that_drives_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Spectra and averages of a run in a pulse are of no equilibrium; one without a field says nothing."""
    for motion, said in (("nve", False), ("eda-nve", True)):
        write_about(tmp_path, properties={}, motions=[motion])
        open_run(tmp_path)
        assert ("drives the system of" in capfd.readouterr().err) == said


def test_the_first_of_several_systems_is_said_to_be_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A temperature that is held is no exchange, whatever digits i-PI wrote; of three systems one is averaged."""
    write_about(tmp_path, properties={"run.out": {"stride": 1, "columns": []}}, systems=3, motions=["nvt"])
    head = "# column   1     --> step : s\n# column   2     --> ensemble_temperature{kelvin} : k\n"
    (tmp_path / "run.out").write_text(head + "0 150.0\n1 150.001\n")
    assert open_run(tmp_path).about["systems"] == 3
    assert "3 systems, of which the first alone is averaged" in capfd.readouterr().err


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_members_count_with_the_weight_of_their_force(tmp_path: Path, weight: float) -> None:
    """Wells of a stiffness that members disagree about by s, half of which is in i-PI's potential: <x²> differs by s
    between them, whatever that weight is, and so does what they are told with."""
    rng = np.random.default_rng(0)
    stiffness, apart = 0.02, np.array([0.05, -0.02, -0.03])
    x = rng.normal(0.0, np.sqrt(KT / (weight * stiffness)), (2000, 3))
    frames = np.zeros((2000, 2, 3))
    frames[:, 1] = x
    write_frames(tmp_path / "run.pos_0.xyz", ["O", "H"], range(2000), frames)
    write_energies(tmp_path, range(2000), np.outer(0.5 * stiffness * (x**2).sum(axis=1), 1 + apart))
    write_about(tmp_path, committee_share=weight)
    run = sample(open_run(tmp_path), [DISTANCE], periodic=False)
    error = uncertainty([run.values[DISTANCE.text] ** 2], [run.energies])
    assert error.committee is not None
    mean = (run.values[DISTANCE.text] ** 2).mean()
    assert error.committee[0] / mean == pytest.approx(np.std(apart, ddof=1), rel=0.1)
    energies = read_committee(open_run(tmp_path))
    assert not isinstance(energies, str)
    assert energies.resolution == pytest.approx(weight * 1e-13)


@pytest.mark.parametrize(
    ("about", "gap"),
    [
        ({"plain_mean": False}, "weights are unequal"),
        ({"joined": True}, "under way"),
        ({"committee_share": None}, "different weights"),
        ({"committee_share": 0.0}, "no weight in i-PI's potential"),
    ],
)
def test_energies_that_say_nothing_are_left_out_with_a_reason(
    tmp_path: Path, about: dict[str, object], gap: str
) -> None:
    """The reasons of the report hold here too; and a resolution that is coarser than what is looked for."""
    write_about(tmp_path, **about)
    rng = np.random.default_rng(1)
    write_frames(tmp_path / "run.pos_0.xyz", ["O", "H"], range(40), rng.normal(size=(40, 2, 3)))
    energies = -70 + 1e-4 * rng.normal(size=(40, 2))
    write_energies(tmp_path, range(40), energies)
    run = sample(open_run(tmp_path), [DISTANCE])
    assert gap in run.gap
    assert (run.energies is None) == bool(gap)
    write_energies(tmp_path, range(40), energies, form=".4e")
    write_about(tmp_path)
    assert "floatformat" in sample(open_run(tmp_path), [DISTANCE]).gap


def _run(folder: Path, **about: object) -> Path:
    """A run of 20 frames of two hydrogens, whose record says this."""
    folder.mkdir(exist_ok=True)
    write_about(folder, **{"models": {"a": "sha256:a"}, "composition": {"H": 2}} | about)
    values = np.random.default_rng(0).normal(size=(20, 2, 3))
    write_frames(folder / "run.pos_0.xyz", ["H", "H"], range(20), values)
    return folder


@pytest.mark.parametrize("change", ["models taken up", "another temperature", "other models", "nothing", "not known"])
def test_steps_of_another_potential_or_temperature_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """A committee taken up at step 12, or a RESTART that was edited to another temperature or other models: the frames
    before it are averaged with the others, and it is said, with the --skip that leaves them out."""
    folder = _run(tmp_path / "run", first_step=0 if change == "models taken up" else 12)
    if change == "models taken up":
        committees = [{"step": 0, "committee": "sha256:a"}, {"step": 12, "committee": "sha256:b"}]
        (folder / "summary.json").write_text(json.dumps({"steps": 20, "exit_code": 0, "committees": committees}))
    else:
        before: dict[str, object] = {"first_step": 0, "models": {"a": "sha256:a"}}
        before |= {"another temperature": {"temperature_K": 600.0}, "other models": {"models": {"a": "sha256:0"}}}.get(
            change, {}
        )
        if change == "not known":
            del before["models"]
        write_about(folder, "beadwork.out.1", **before)
    with caplog.at_level("WARNING", logger="beadwork"):
        found = sample(open_run(folder), [parse("distance:0,1")])
    assert len(found.steps) == 20
    told = (
        "12 of 20 steps of" in caplog.text and "before step 12" in caplog.text and "--skip 0.006 leaves" in caplog.text
    )
    assert told == (change not in ("nothing", "not known"))
    caplog.clear()
    sample(open_run(folder), [parse("distance:0,1")], skip=0.006)
    assert caplog.text == ""


def test_every_analysis_tells_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Velocities, dipoles and properties of a run that goes on with other models: each says how many steps are of the
    others, and spectra of two runs of other models are not averaged."""
    folder = _run(
        tmp_path / "run", first_step=12, properties={"run.out": {"stride": 1, "columns": ["step", "potential"]}}
    )
    write_about(folder, "beadwork.out.1", first_step=0, models={"a": "sha256:0"})
    values = np.random.default_rng(1).normal(size=(20, 2, 3))
    write_frames(folder / "run.v_0.xyz", ["H", "H"], range(20), values, "v_centroid", "velocity", "atomic_unit")
    write_extra(folder, "dipole", range(20), values[:, 0])
    rows = "\n".join(f"{step} {step / 100}" for step in range(20))
    head = "# column   1     --> step : the step\n# column   2     --> potential : the energy\n"
    (folder / "run.out").write_text(f"{head}{rows}\n")
    run = open_run(folder)
    for made in (
        lambda: spectrum([run], window=4.0, highest=4500.0),
        lambda: infrared([run], window=4.0),
        lambda: properties([run]),
    ):
        caplog.clear()
        with caplog.at_level("WARNING", logger="beadwork"):
            made()
        assert "12 of 20 steps of" in caplog.text
    other = open_run(_run(tmp_path / "other", models={"a": "sha256:b"}))
    with pytest.raises(ConfigError, match="different models"):
        infrared([run, other], window=4.0)


def test_runs_of_other_models_or_atoms_are_not_averaged(tmp_path: Path) -> None:
    """Two runs whose models or atoms differ are no pieces of one kind; each member's own model is what --members is
    about; and an older record, which does not say, is taken as it is."""
    one = open_run(_run(tmp_path / "a"))
    other = open_run(_run(tmp_path / "b", models={"a": "sha256:b"}))
    with pytest.raises(ConfigError, match="different models: sha256:a and sha256:b"):
        one_state([one, other])
    one_state([one, other], of_members=True)
    with pytest.raises(ConfigError, match="different models"):
        alike([sample(run, [parse("distance:0,1")]) for run in (one, other)])
    more = open_run(_run(tmp_path / "c", composition={"H": 4}))
    with pytest.raises(ConfigError, match="different atoms: H2 and H4"):
        one_state([one, more], of_members=True)
    older = open_run(_run(tmp_path / "d", models=None, composition=None))
    one_state([one, older])
    alike([sample(run, [parse("distance:0,1")]) for run in (one, older)])
