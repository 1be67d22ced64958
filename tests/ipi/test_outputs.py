"""What i-PI wrote is read back as it was: its own writers on one side, our readers on the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ipi.engine.atoms import Atoms
from ipi.engine.cell import Cell
from ipi.engine.outputs import TrajectoryOutput
from ipi.utils.io import print_file

from beadwork.errors import SimulationError
from beadwork.ipi import outputs
from beadwork.ipi.outputs import Files, find_positions, find_trajectory, read_potentials, read_properties
from beadwork.units import BOHR

NAMES = ["O", "H", "D", "O17"]
CELL = np.array([[7.0, 0.0, 0.0], [1.0, 8.0, 0.0], [0.5, -0.3, 9.0]])  # Å, rows


def write_trajectory(folder: Path, mode: str, steps: list[int], beads: int = 2) -> dict[tuple[int, int], np.ndarray]:
    """Let i-PI itself write a trajectory of every bead; return positions in Å by step and bead."""
    rng = np.random.default_rng(3)
    cell = Cell(h=CELL.T / BOHR)
    written = {}
    for bead in range(beads):
        with open(folder / f"run.pos_{bead}.{mode}", "w") as file:
            for step in steps:
                atoms = Atoms(len(NAMES))
                atoms.names = np.array(NAMES)
                atoms.q = rng.uniform(-20, 20, 3 * len(NAMES))
                title = f"Step:  {step:10d}  Bead:   {bead:5d} "
                units = {"units": "angstrom", "cell_units": "angstrom"}
                print_file(mode, atoms, cell, file, title=title, key="positions", dimension="length", **units)
                written[step, bead] = np.array(atoms.q).reshape(-1, 3) * BOHR
    return written


def test_any_quantity_of_all_atoms_is_read_in_atomic_units(tmp_path: Path) -> None:
    """Velocities and energies an atom, by what the frame says it is; a name that begins alike is another quantity."""
    for key, what, dimension, units in (
        ("vc", "v_centroid", "velocity", "m/s"),
        ("odd", "v_centroid_odd", "velocity", "atomic_unit"),
        ("kin", "kinetic_cv", "energy", "electronvolt"),
    ):
        with open(tmp_path / f"run.{key}.xyz", "w") as file:
            for step in (0, 7):
                atoms = Atoms(len(NAMES))
                atoms.names = np.array(NAMES)
                atoms.q = np.arange(12.0) + step
                title = f"Step:  {step:10d}  Bead:   {0:5d} "
                print_file("xyz", atoms, Cell(h=CELL.T / BOHR), file, title, what, dimension, units, "angstrom")
    assert find_trajectory(Files(tmp_path, "run"), "positions") is None
    for what in ("v_centroid", "kinetic_cv"):
        trajectory = find_trajectory(Files(tmp_path, "run"), what)
        assert trajectory is not None
        assert len(trajectory.files) == 1
        for (step, bead, names, values), wanted in zip(trajectory.vectors(), (0, 7), strict=True):
            assert (step, bead, names.tolist()) == (wanted, 0, NAMES)
            assert np.allclose(values, np.arange(12.0).reshape(4, 3) + wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mode", "digits"), [("xyz", 1e-4), ("pdb", 1e-3)])
def test_bead_positions_are_read_as_ipi_wrote_them(tmp_path: Path, mode: str, digits: float) -> None:
    """Å, rows, cells and species, from files of i-PI's own writer; a file that is something else is no trajectory."""
    written = write_trajectory(tmp_path, mode, [0, 10, 20])
    (tmp_path / "run.centroid.xyz").write_text(
        "1\n# CELL(abcABC): 1 1 1 90 90 90 Step: 0 Bead: 0 x_centroid{angstrom}\nH 0 0 0\n"
    )
    trajectory = find_positions(Files(tmp_path, "run"))
    assert trajectory is not None
    assert (len(trajectory.files), trajectory.every) == (2, 1)
    found = {(step, bead): frame for step, bead, frame in trajectory}
    assert set(found) == set(written)
    for key, frame in found.items():
        assert np.abs(frame.positions - written[key]).max() < digits
        assert np.abs(frame.cell - CELL).max() < 1e-2  # the format's digits
        assert frame.numbers.tolist() == [8, 1, 1, 8]
        assert frame.pbc == (True, True, True)


def test_a_torn_frame_is_left_out(tmp_path: Path) -> None:
    """A killed i-PI leaves half a frame, or half a number, at the end: neither is read."""
    written = write_trajectory(tmp_path, "xyz", [0, 10, 20], beads=1)
    path = tmp_path / "run.pos_0.xyz"
    whole = path.read_text()
    for cut in (3, 40, 130):
        path.write_text(whole[:-cut])
        trajectory = find_positions(Files(tmp_path, "run"))
        assert trajectory is not None
        assert [step for step, _, _ in trajectory] == [0, 10]
    assert len(written) == 3
    path.write_text(whole + str(len(NAMES))[:1])  # in the midst of the next one's first line
    assert [step for step, _, _ in find_positions(Files(tmp_path, "run")) or ()] == [0, 10, 20]


@pytest.mark.parametrize("mode", ["xyz", "pdb"])
@pytest.mark.parametrize("cut", [5, 40, 130, 200])
def test_a_frame_torn_in_the_middle_is_left_out(tmp_path: Path, mode: str, cut: int) -> None:
    """An i-PI that was killed and goes on from its RESTART appends to what it tore: all whole frames are read."""
    write_trajectory(tmp_path, mode, [0, 10], beads=1)
    path = tmp_path / f"run.pos_0.{mode}"
    torn = path.read_text()[:-cut]
    written = write_trajectory(tmp_path, mode, [20, 30, 40], beads=1)
    path.write_text(torn + path.read_text())
    trajectory = find_positions(Files(tmp_path, "run"))
    assert trajectory is not None
    found = {step: frame for step, _, frame in trajectory}
    assert {0, 30, 40} <= set(found) <= {0, 20, 30, 40}  # the first line after the cut may be lost with it
    for step in set(found) - {0}:
        assert np.abs(found[step].positions - written[step, 0]).max() < 1e-3


def test_a_line_torn_in_the_middle_is_left_out(tmp_path: Path) -> None:
    """The same of properties: the line that i-PI appended to half a line is not its own."""
    head = "# column   1     --> step : a\n# column   2     --> time{picosecond} : b\n"
    (tmp_path / "a.out").write_text(head + "0 0.0\n1 0.5\n2 1." + head + "2 1.0\n3 1.5\n")
    assert read_properties(tmp_path / "a.out")["time"].steps.tolist() == [0, 1, 2, 3]
    (tmp_path / "a.out").write_text(head + "0 0.0\n1 0.5\n2 1." + "2 1.0\n3 1.5\n")
    times = read_properties(tmp_path / "a.out")["time"]
    assert times.steps.tolist() == [0, 1, 3]
    assert times.values.tolist() == [0.0, 0.5, 1.5]
    assert times.unit == "picosecond"


def test_what_was_given_up_at_a_restart_does_not_count(tmp_path: Path) -> None:
    """Killed at step 5, gone on with from 2 to 3, and from 3 to 4: step 5 is of a trajectory that was given up."""
    head = "# column   1     --> step : a\n# column   2     --> potential : b\n"
    passes = ((0, 1, 2, 3, 4, 5), (3,), (4,))
    rows = [f"{step} {number + 1}\n" for number, one in enumerate(passes) for step in one]
    (tmp_path / "a.out").write_text(head + "".join(rows))
    found = read_properties(tmp_path / "a.out")
    assert found["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert found["potential"].values.tolist() == [1, 1, 1, 2, 3]


def test_rows_behind_an_edited_restart_have_its_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """i-PI appends rows of what the RESTART asks for under the old header: each property is of the rows that have it,
    in the unit it has last, and a row torn between them is nobody's; without the RESTART the new rows are not known."""
    head = "# column   1     --> step : a\n# column   2     --> potential{electronvolt} : b\n"
    old = "".join(f"{step} {-5 - step}\n" for step in range(5))
    # the torn row has as many numbers as a new one
    old += "5 -10" + "  3 -8\n" + "  4 -9\n"
    new = "".join(f"{step} 7000 {-1000 * (5 + step)} 300\n" for step in (3, 4, 5))
    (tmp_path / "a.out").write_text(head + old + new)
    asked = ["step", "conserved{kelvin}", "potential{millielectronvolt}", "temperature{kelvin}"]
    found = read_properties(tmp_path / "a.out", asked, 1, 3)
    assert {name: (one.steps.tolist(), one.unit) for name, one in found.items()} == {
        "step": ([0, 1, 2, 3, 4, 5], "atomic units"),
        "potential": ([0, 1, 2, 3, 4, 5], "millielectronvolt"),
        "conserved": ([3, 4, 5], "kelvin"),
        "temperature": ([3, 4, 5], "kelvin"),
    }
    assert found["potential"].values[:3] == pytest.approx(-1000 * np.array([5, 6, 7]))
    assert found["potential"].values[3:] == pytest.approx(-1000 * np.array([8, 9, 10]))
    assert not caplog.messages
    found = read_properties(tmp_path / "a.out", asked[:1] + asked[2:3])
    assert found["potential"].values.tolist() == [-5, -6, -7, -8, -9]
    assert f"{tmp_path / 'a.out'}: 3 rows of 4 numbers are left out" in caplog.text


def test_columns_that_a_restart_swaps_are_not_guessed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As many columns under other names: nothing tells which rows are of which, so none is read, until the user puts a
    header there; an input that was edited and starts anew says nothing of the old rows."""
    heads = [
        f"# column   1     --> {one} : a\n# column   2     --> {other} : b\n"
        for one, other in (("step", "potential"), ("potential", "step"))
    ]
    path, asked = tmp_path / "a.out", ["potential", "step"]
    path.write_text(heads[0] + "0 -7\n1 -8\n" + "-9 2\n-10 3\n")
    assert read_properties(path, asked, 1, 1) == {}
    assert "its header names step, potential, the input asks for potential, step" in caplog.text
    assert len(read_properties(path, asked, 1, 0)) == 2
    path.write_text(heads[0] + "0 -7\n1 -8\n" + heads[1] + "-9 2\n-10 3\n")
    found = read_properties(path, asked, 1, 1)
    assert found["potential"].values.tolist() == [-7, -8, -9, -10]
    assert found["potential"].steps.tolist() == [0, 1, 2, 3]


def test_what_an_edited_restart_writes_under_an_old_name_is_told_apart(tmp_path: Path) -> None:
    """Each frame says what it is: forces behind positions are no positions, and an energy spread behind the members'
    energies is no member."""
    written = write_trajectory(tmp_path, "xyz", [0, 10], beads=1)
    path = tmp_path / "run.pos_0.xyz"
    path.write_text(
        path.read_text()
        + path.read_text().replace("positions{angstrom}", "forces{atomic_unit}").replace("Step:  ", "Step: 2")
    )
    trajectory = find_positions(Files(tmp_path, "run"))
    assert trajectory is not None
    assert [step for step, _, _ in trajectory] == [step for step, _ in written]
    title = " #EXTRAS({})# Step:  {:10d} \n"
    (tmp_path / "run.committee_0").write_text(
        title.format("committee_pot", 0)
        + "-1.0 -1.5\n"
        + title.format("energy_spread,committee_pot", 5)
        + "0.25 -2.0 -2.5\n"
        + title.format("dipole", 10)
        + "1.0 2.0 3.0\n"
    )
    found = read_potentials(Files(tmp_path, "run", 1))
    assert found is not None
    assert {step: values.tolist() for step, values in found.by_step.items()} == {0: [-1, -1.5], 5: [-2, -2.5]}


@pytest.mark.parametrize("stem", ["", "a[1]", "/absolute"])
def test_prefixes_as_ipi_takes_them(tmp_path: Path, stem: str) -> None:
    """None at all, one that a pattern would take for its own, one that is a path: the positions are found."""
    write_trajectory(tmp_path, "xyz", [0])
    for path in tmp_path.glob("run.*"):
        path.rename(path.with_name(path.name.replace("run.", f"{Path(stem).name}." if stem else "")))
    trajectory = find_positions(Files(tmp_path, f"{tmp_path}{stem}" if stem.startswith("/") else stem))
    assert trajectory is not None
    assert len(trajectory.files) == 2


def test_files_of_another_run_in_the_folder_are_not_this_runs(tmp_path: Path) -> None:
    """By the names that its input has, whatever else lies there: beads of a run of more or of fewer, a centroid under
    another name, a prefix that begins alike, another committee's energies."""
    for prefix, beads in (("run", 2), ("run.long", 4)):
        write_trajectory(tmp_path, "xyz", [0, 10, 20], beads)
        for path in list(tmp_path.glob("run.pos_*")) if prefix != "run" else ():
            path.rename(path.with_name(path.name.replace("run.", f"{prefix}.")))
    write_trajectory(tmp_path, "xyz", [0], beads=2)
    for name in ("run.pos_2.xyz", "run.pos_00.xyz", "run.old_0.xyz"):
        (tmp_path / name).write_text((tmp_path / "run.long.pos_3.xyz").read_text())
    names = ("run.pos_0.xyz", "run.pos_1.xyz")
    for name, value in (("run.pot", -1.0), ("run.com", -2.0), ("run.long.com", -3.0)):
        for bead in range(2):
            (tmp_path / f"{name}_{bead}").write_text(f" #EXTRAS(committee_pot)# Step:  {0:10d} \n {value} {value}\n")
    files = Files(tmp_path, "run", 2, (names, ("run.com_0", "run.com_1"), ("run.gone_0",)))
    trajectory, energies = find_positions(files), read_potentials(files)
    assert trajectory is not None
    assert energies is not None
    assert tuple(path.name for path in trajectory.files) == names
    assert [step for step, _, _ in trajectory] == [0, 0]
    assert energies.by_step[0].tolist() == [-2, -2]
    assert find_trajectory(Files(tmp_path, "run", 2, ()), "positions") is None


@pytest.mark.parametrize(
    ("names", "beads", "said"),
    [
        (["run.pos_0.xyz", "run.pos_1.xyz"], 2, ""),
        (["run.pos_00.xyz", "run.pos_04.xyz", "run.pos_08.xyz"], 10, ""),
        (["run.pos_0.xyz", "run.long.pos_0.xyz"], 1, ""),
        (["run.pos_0.xyz", "runs.pos_1.xyz"], 1, ""),
        (["run.pos_0.xyz", "run.pos_1.xyz"], 1, "of 2 beads, run.pos_0.xyz to run.pos_1.xyz, and this run has 1"),
        (["run.pos_0.xyz", "run.pos_00.xyz"], 16, "of 2 beads, .* and this run has 16"),
        (["run.long.pos_0.xyz"], 1, "may be of another run whose prefix begins as this one's, 'run'"),
        (["run.pos_0.xyz", "run.old_0.xyz"], 1, "run.old_0.xyz and run.pos_0.xyz .* hold the same quantity"),
    ],
)
def test_an_older_record_takes_no_file_that_may_be_of_another_run(
    tmp_path: Path, names: list[str], beads: int, said: str
) -> None:
    """Where the record has the prefix alone: more beads than the run has, another number of digits, a prefix that
    begins alike and a second output are refused; every fourth bead, as i-PI writes it for bead='-4', is this run's."""
    write_trajectory(tmp_path, "xyz", [0], beads=1)
    text = (tmp_path / "run.pos_0.xyz").read_text()
    (tmp_path / "run.pos_0.xyz").unlink()
    for name in names:
        (tmp_path / name).write_text(text)
    if said:
        with pytest.raises(SimulationError, match=said):
            find_positions(Files(tmp_path, "run", beads))
        return
    trajectory = find_positions(Files(tmp_path, "run", beads))
    assert trajectory is not None
    own = [name for name in names if name.startswith("run.pos")]
    assert [path.name for path in trajectory.files] == own


def test_two_formats_of_one_name_are_two_outputs(tmp_path: Path) -> None:
    """<trajectory filename='pos'> as xyz and as pdb: two files, one a bead, not four, with the more digits."""
    write_trajectory(tmp_path, "pdb", [0, 10])
    write_trajectory(tmp_path, "xyz", [0, 10])
    trajectory = find_positions(Files(tmp_path, "run"))
    assert trajectory is not None
    assert [path.name for path in trajectory.files] == ["run.pos_0.xyz", "run.pos_1.xyz"]


@pytest.mark.parametrize("mode", ["xyz", "pdb"])
def test_long_trajectories_are_thinned_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Weeks of output do not take hours: every n-th step is taken, from the first to the last, of all beads the same,
    though a kill has torn a frame of one bead and had another write two steps twice."""
    written = write_trajectory(tmp_path, mode, list(range(10, 110, 5)))
    one, two = (tmp_path / f"run.pos_{bead}.{mode}" for bead in range(2))
    monkeypatch.setattr(outputs, "MOST_ATOMS", 2 * 5 * len(NAMES))
    lines = one.read_text().splitlines(keepends=True)
    length = len(lines) // 20
    one.write_text("".join(lines[: 8 * length - 2] + lines[8 * length :]))  # step 45
    lines = two.read_text().splitlines(keepends=True)
    two.write_text("".join(lines[: 9 * length] + lines[7 * length :]))
    trajectory = find_positions(Files(tmp_path, "run"))
    assert trajectory is not None
    assert trajectory.every == 20
    for bead in range(2):
        found = {step: frame for step, of, frame in trajectory if of == bead}
        assert list(found) == [20, 40, 60, 80, 100]
        for step, frame in found.items():
            assert np.abs(frame.positions - written[step, bead]).max() < 1e-3


def test_potentials_are_the_mean_over_the_beads(tmp_path: Path) -> None:
    """What the ring polymer feels; what was given up at a restart (step 9, and 5 the first time) does not count, and a
    missing bead is seen."""
    for bead, shift in enumerate((0.0, 2.0)):
        lines = []
        for step in (0, 5, 9, 5):
            lines += [
                f" #EXTRAS(committee_pot)# Step:  {step:10d} ",
                f"{-1.25 + shift + len(lines):16.8e} {-3.5 + shift:16.8e}",
            ]
        (tmp_path / f"run.committee_{bead}").write_text("\n".join(lines) + "\n")
    found = read_potentials(Files(tmp_path, "run", 2))
    assert found is not None
    assert {step: values.tolist() for step, values in found.by_step.items()} == {0: [-0.25, -2.5], 5: [5.75, -2.5]}
    assert found.resolution == pytest.approx(1e-8)
    # killed in the middle of step 900's title, and gone on with from 5
    for bead in range(2):
        path = tmp_path / f"run.committee_{bead}"
        torn = f" #EXTRAS(committee_pot)# Step:  {900:10d} "[:-3]
        path.write_text(path.read_text() + f"{torn} #EXTRAS(committee_pot)# Step:  {6:10d} \n -1.0e+00 -2.0e+00 \n")
    again = read_potentials(Files(tmp_path, "run", 2))
    assert again is not None
    assert list(again.by_step) == [0, 5, 6]
    assert read_potentials(Files(tmp_path, "run", 3)) is None
    assert read_potentials(Files(tmp_path, "other", 2)) is None


def test_potentials_beside_other_extras(tmp_path: Path) -> None:
    """i-PI's own writer puts the numbers of several keys on one line: beside keys of one number each the members'
    energies are told; of others, as dipoles and the committee's hash, nobody knows how many numbers they are."""
    output = TrajectoryOutput.__new__(TrajectoryOutput)
    for keys, known in (
        ("committee_pot,energy_spread, force_spread_max", True),
        ("energy_spread,committee_pot", True),
        ("committee_pot,committee", False),
        ("dipole,committee_pot", False),
    ):
        output.extra_type = keys
        with open(tmp_path / "run.committee_0", "w") as file:
            for step in (0, 5, 5):
                output.system = SimpleNamespace(simul=SimpleNamespace(step=step - 1))
                extras = {"committee_pot": [[-1.0 - step, -1.5, -1.25]], "energy_spread": [0.1], "committee": ["0123"]}
                extras |= {"force_spread_max": [None], "dipole": [[1.0, 2.0, 3.0]]}
                output.write_traj(extras, "extras", file, 0, flush=False)
            file.write(f" #EXTRAS({keys})# Step:          10 \n -1.0")
        found = read_potentials(Files(tmp_path, "run", 1))
        assert (found is not None) == known
        if found is not None:
            series = {step: values.tolist() for step, values in found.by_step.items()}
            assert series == {0: [-1.0, -1.5, -1.25], 5: [-6.0, -1.5, -1.25]}
            assert found.resolution == pytest.approx(1e-8)


def test_a_property_of_one_species_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    """i-PI writes kinetic_cv(H){electronvolt} too, and that is not the system's: it has a name of its own, whichever
    way round its unit and its arguments stand; so has each column of a property that has several."""
    lines = ["# column   1     --> step : a", "# column   2     --> kinetic_cv{electronvolt} : b"]
    lines += ["# column   3     --> kinetic_cv(H){electronvolt} : c", "# column   4     --> kinetic_cv{kelvin}(O) : d"]
    lines += ["# cols.    5-6   --> scaledcoords(fd_delta = 5e-3) : e", "1 2.0 3.0 4.0 5.0 6.0"]
    (tmp_path / "a.out").write_text("\n".join(lines) + "\n")
    found = read_properties(tmp_path / "a.out")
    assert {name: (series.unit, *series.values) for name, series in found.items()} == {
        "step": ("atomic units", 1.0),
        "kinetic_cv": ("electronvolt", 2.0),
        "kinetic_cv(H)": ("electronvolt", 3.0),
        "kinetic_cv(O)": ("kelvin", 4.0),
        "scaledcoords(fd_delta=5e-3)[0]": ("atomic units", 5.0),
        "scaledcoords(fd_delta=5e-3)[1]": ("atomic units", 6.0),
    }


@pytest.mark.parametrize(
    ("head", "rows", "first", "steps"),
    [
        (["potential{electronvolt}"], ["-1.0", "-2.0", "-3.0"], 0, [0, 4, 8]),
        (["potential{electronvolt}"], ["-1.0", "-2.0", "-3.0"], 7, [0, 4, 8]),  # it goes on with the same file
        (["potential{electronvolt}", "time{picosecond}"], ["-1 0.001", "-2 0.003"], 0, [2, 6]),
        (["potential{electronvolt}", "time"], ["-1 41.341373", "-2 82.682747"], 0, [2, 4]),
        (["step", "potential{electronvolt}"], ["4 -1", "8 -2"], 0, [4, 8]),
    ],
)
def test_steps_are_told_without_a_column_of_them(
    tmp_path: Path, head: list[str], rows: list[str], first: int, steps: list[int]
) -> None:
    """By the times, or by the rows: i-PI writes at every multiple of the stride. One input of thirty has no steps."""
    lines = [f"# column {k:3d}     --> {name} : words" for k, name in enumerate(head, 1)]
    (tmp_path / "a.out").write_text("\n".join([*lines, *rows, ""]))
    potential = read_properties(tmp_path / "a.out", head, 4, first, 0.5)["potential"]
    assert potential.steps.tolist() == steps
    assert (potential.values[0], potential.unit) == (-1.0, "electronvolt")


@pytest.mark.parametrize(("first", "begin"), [(5, 8), (7, 8), (8, 12)])
def test_a_file_that_begins_at_a_restart_has_no_header(tmp_path: Path, first: int, begin: int) -> None:
    """i-PI writes none then: the columns are those that the input asks for, of several the same names as with a header,
    and the first row is the next multiple."""
    rows = "1 2 3 4 5 6 -7.0 300.0\n1 2 3 4 5 6 -8.0 301.0\n"
    (tmp_path / "a.out").write_text(rows)
    several = ["scaledcoords(fd_delta=-5e-3; x=1){electronvolt}", "stress_cv{bar}"]
    columns = [*(f"{several[0]}[{k}]" for k in range(2)), *(f"{several[1]}[{k}]" for k in range(4))]
    asked = [*columns, "potential{electronvolt}", "temperature{kelvin}"]
    found = read_properties(tmp_path / "a.out", asked, 4, first)
    heads = [f"cols.    1-2   --> {several[0]}", f"cols.    3-6   --> {several[1]}", f"column   7     --> {asked[6]}"]
    head = "".join(f"# {line} : words\n" for line in [*heads, f"column   8     --> {asked[7]}"])
    (tmp_path / "b.out").write_text(head + rows)
    wanted = read_properties(tmp_path / "b.out")
    assert {name: (one.unit, one.values.tolist()) for name, one in found.items()} == {
        name: (one.unit, one.values.tolist()) for name, one in wanted.items()
    }
    assert found["scaledcoords(fd_delta=-5e-3;x=1)[1]"].values.tolist() == [2, 2]
    assert len(found) == 8
    assert found["temperature"].values.tolist() == [300, 301]
    assert found["potential"].steps.tolist() == [begin, begin + 4]
