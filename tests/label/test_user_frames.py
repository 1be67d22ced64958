"""Frames that the user brings: read as they were written, stored whole or not at all, and labelled like all others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ipi.utils.io import print_file
from ipi.utils.mathtools import abc2h

from beadwork.cli import main
from beadwork.errors import ConfigError
from beadwork.harvest.queue import Queue
from beadwork.label import run as labelling
from beadwork.label.choose import from_queue
from beadwork.label.clusters import Cut
from beadwork.label.spec import Spec
from beadwork.label.user_frames import Added, add

Springs = Callable[..., Spec]
BASELINE = Path(__file__).parents[2] / "models" / "water-highlevel" / "baseline"
BOHR = 0.529177210903


class Structure:
    """What i-PI's own writer takes: Bohr."""

    def __init__(self, seed: int, cell: np.ndarray) -> None:
        self.q = np.random.default_rng(seed).uniform(-3, 12, 18)
        self.names = np.array(["O", "H", "D", "O", "H", "H"])
        self.natoms = 6
        self.h = cell


def counts(added: Added) -> tuple[int, int, bool]:
    """How many were stored, how many were known, and whether the last was left out."""
    return added.stored, added.known, added.torn


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """An empty one."""
    return Queue(tmp_path / "queue.db", create=True)


@pytest.mark.parametrize("units", ["angstrom", "atomic_unit"])
@pytest.mark.parametrize("mode", ["xyz", "pdb"])
def test_trajectory_of_ipi(queue: Queue, tmp_path: Path, mode: str, units: str) -> None:
    """i-PI's own writer, a tilted cell, both units: positions and cell come back in Å, every second frame alone."""
    cell = abc2h(12.0, 13.0, 14.0, 1.4, 1.5, 1.7)
    path = tmp_path / f"simulation.pos_0.{mode}"
    made = [Structure(seed, cell) for seed in range(5)]
    with path.open("w") as out:
        for step, one in enumerate(made):
            title = f" Step:  {10 * step}  Bead:       0 "
            print_file(mode, one, one, out, title=title, key="positions", dimension="length", units=units,
                       cell_units=units)  # fmt: skip
    assert counts(add(queue, path, every=2)) == (3, 0, False)
    digits = 1e-3 if mode == "pdb" else 5e-5  # of what i-PI writes
    for row, number in zip(queue.rows(), (0, 2, 4), strict=True):
        frame = row.kept.frame
        np.testing.assert_allclose(frame.positions.ravel(), made[number].q * BOHR, atol=digits)
        np.testing.assert_allclose(frame.cell, cell.T * BOHR, atol=2 * digits)
        assert frame.numbers.tolist() == [8, 1, 1, 8, 1, 1]
        assert (frame.pbc, row.kept.evaluation) == ((True, True, True), number)
    assert counts(add(queue, path)) == (2, 3, False)


def test_whatever_ase_reads(queue: Queue, tmp_path: Path) -> None:
    """Cell and periodicity as the file has them, or none if the user says so; a copy is not stored again."""
    slab = ase.build.molecule("H2O", cell=np.diag([5.0, 5.5, 9.0]), pbc=(True, True, False))
    ase.io.write(tmp_path / "slab.traj", slab)
    assert counts(add(queue, tmp_path / "slab.traj")) == (1, 0, False)
    (row,) = queue.rows()
    assert row.kept.frame.pbc == (True, True, False)
    np.testing.assert_array_equal(row.kept.frame.positions, slab.positions)
    assert counts(add(queue, tmp_path / "slab.traj")) == (0, 1, False)
    assert counts(add(queue, tmp_path / "slab.traj", periodic=False)) == (1, 0, False)
    assert queue.get(2).kept.frame.pbc == (False, False, False)


FRAME = "2\n# CELL(abcABC): 9 9 9 90 90 90 {title}\nO 1 1 {x}\nH 2 1 1\n"
GOOD = FRAME.format(title="positions{angstrom} cell{angstrom}", x="1")


@pytest.mark.parametrize("suffix", ["xyz", "vasp", "cif"])
def test_a_name_with_an_at_sign_is_a_name(queue: Queue, tmp_path: Path, suffix: str) -> None:
    """ASE would read of `w@1` frame 1 of the file `w`: another file than the one that was named and hashed."""
    other, named = (ase.build.molecule(name, vacuum=4.0) for name in ("CH4", "H2O"))
    ase.io.write(tmp_path / f"w.{suffix}", other)
    for name in (f"w.{suffix}@0", f"w.{suffix}@0.{suffix}", f"a@1.{suffix}"):
        ase.io.write(tmp_path / name, named, format={"xyz": "extxyz"}.get(suffix, suffix))
    assert str(add(queue, tmp_path / f"a@1.{suffix}").kinds[0]).startswith("1 of H2O")
    assert add(queue, tmp_path / f"w.{suffix}@0.{suffix}").known == 1
    with suppress(ConfigError):  # a name that no format has may be refused, but is never another file
        add(queue, tmp_path / f"w.{suffix}@0")
    assert {row.kept.frame.to_atoms().get_chemical_formula() for row in queue.rows()} == {"H2O"}


#: of each pair of sites of hydrogen one is taken
ICE = """data_ice
_cell_length_a 6
_cell_length_b 6
_cell_length_c 6
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
O1 O 0.10 0.10 0.10 1.0
D1 D 0.26 0.10 0.10 0.5
D2 D 0.10 0.26 0.10 0.5
D3 D 0.10 0.10 0.26 0.5
D4 D 0.00 0.00 0.00 0.5
"""
#: one atom of water in two places
PLACES = "".join(
    f"HETATM{k:5d}  {name:<2} {place}HOH A   1    {x:8.3f}   0.000   0.000{part:6.2f}  0.00          {name[0]:>2}\n"
    for k, (name, place, x, part) in enumerate(
        [("O", " ", 0.0, 1.0), ("H1", " ", 0.96, 1.0), ("H2", "A", -0.9, 0.6), ("H2", "B", -0.6, 0.4)], 1
    )
)


def frame(title: str = "positions{angstrom} cell{angstrom}", x: str = "1") -> str:
    """One of i-PI's, after a good one."""
    return GOOD + FRAME.format(title=title, x=x)


def water(kind: str, stretched: float) -> str:
    """One H2O of a PDB, SDF or gro, one O-H longer by so much."""
    atoms = [("O", 0.0, 0.0), ("H1", 0.96 + stretched, 0.0), ("H2", -0.24, 0.93)]
    if kind == "pdb":
        row = "HETATM{:5d}  {:<3} HOH A   1    {:8.3f}{:8.3f}   0.000  1.00  0.00          {:>2}\n"
        return "".join(row.format(k, name, x, y, name[0]) for k, (name, x, y) in enumerate(atoms, 1))
    if kind == "sdf":
        rows = "".join(f"{x:10.4f}{y:10.4f}    0.0000 {name[0]}   0\n" for name, x, y in atoms)
        return f"w\n  x 3D\n\n  3  0  0  0  0  0  0  0  0  0999 V2000\n{rows}M  END\n"
    gro = "    1SOL  {:>5}{:5d}{:8.3f}{:8.3f}   0.000\n"
    rows = "".join(gro.format(name, k, x / 10, y / 10) for k, (name, x, y) in enumerate(atoms, 1))
    return f"water t= 0.0\n    3\n{rows}"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("f.xyz", frame("Step: 0 Bead: 0 forces{ev/ang} cell{angstrom}"), "frame 1 .* no positions"),
        # i-PI does not know the word, and would take Å
        ("f.pdb", "TITLE cell{atomic_unit} position{atomic_unit}\nATOM\nEND\n", "frame 0 .* no positions"),
        ("f.xyz", frame(""), "frame 1 .* does not name its units"),
        ("f.xyz", frame("cell{angstrom}"), "frame 1 .* does not name its units"),
        ("f.xyz", GOOD[:-3] + GOOD, "is incomplete"),
        ("f.xyz", GOOD[:-12] + GOOD, "incomplete|number of atoms"),
        ("f.xyz", GOOD + GOOD.replace("2\n", "3\n", 1).replace("O 1", "O 0 0 0\nO 1", 1), "3 atoms, the first 2"),
        ("f.xyz", frame(x="nan"), "frame 1 of"),
        ("f.xyz", frame().replace("H 2", "Q 2"), "frame 0 of|cannot read"),
        (
            "f.xyz",
            "1\nProperties=species:S:1:pos:R:3 charge=1 total_charge=0\nO 0 0 0\n",
            "frame 0 of .*: the structure has charge=1 and total_charge=0",
        ),
        ("ice.cif", ICE, "frame 0 of .*ice.cif has a site with H of which 0.5 is there .*occupancy"),
        ("f.pdb", f"{PLACES}END\n", "frame 0 of .*f.pdb has a site with H of which 0.6 is there .*occupancy"),
        ("f.xyz", '1\nLattice="0.9 0 0 0 9 0 0 0 9" pbc="T F F"\nO 0 0 0\n', "each atom is 0.9000 Å from its own"),
        ("f.xyz", '1\nLattice="9 0 0 8.5 0.5 0 0 0 9"\nO 0 0 0\n', "a cell in which each atom is 0.7071 Å from its"),
        ("f.gro", water("gro", 0.0) + "1 1 1\nwater\n", "frame 1 of .* has no number of atoms in line 8"),
        ("f.gro", water("gro", 0.0), "there is no whole frame in .*f.gro"),
        ("f.xyz", "", "f.xyz"),
        ("f.txt", "not a structure", "f.txt"),
    ],
)
def test_what_is_no_frame_is_refused(queue: Queue, tmp_path: Path, name: str, text: str, said: str) -> None:
    """Forces, no units, torn frames, NaN and other files: named, and nothing of the file is stored."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        add(queue, tmp_path / name)
    assert len(queue) == 0


PDB = [water("pdb", 0.01 * k) for k in range(3)]
MODELS = "".join(f"MODEL     {k:4d}\n{one}TER\nENDMDL\n" for k, one in enumerate(PDB, 1)) + "MASTER\nEND\n"
BOX = "CRYST1   {0:6.3f}   {0:6.3f}   {0:6.3f}  90.00  90.00  90.00 P 1           1\n"


@pytest.mark.parametrize(
    ("name", "text", "side"),
    [
        ("models.pdb", MODELS, 0),
        ("box.pdb", BOX.format(12) + MODELS, 12),
        ("box-of-each.pdb", "".join(BOX.format(12) + one + "END\n" for one in PDB), 12),
        ("no-box.pdb", BOX.format(1) + MODELS, 0),
        ("no-box-by-zeros.pdb", BOX.format(0) + MODELS, 0),
        ("library.sdf", "".join(water("sdf", 0.01 * k) + "> <name>\nw\n\n$$$$\n" for k in range(3)), 0),
        ("library.mol", "$$$$\n".join(water("sdf", 0.01 * k) for k in range(3)), 0),
        ("box.gro", "".join(water("gro", 0.01 * k) + "  1.2  1.2  1.2\n" for k in range(3)), 12),
        ("no-box.gro", "".join(water("gro", 0.01 * k) + "  0.0  0.0  0.0\n" for k in range(3)) + "\n", 0),
    ],
)
def test_every_structure_of_a_file_is_read(queue: Queue, tmp_path: Path, name: str, text: str, side: float) -> None:
    """All records of an SDF, of which ASE reads the first, and of a gro; all models of a PDB, whose last END is none of
    them, in the cell that stands above all; and a cell of 1 Å is how a PDB says that there is none, 0 how others do."""
    (tmp_path / name).write_text(text)
    assert counts(add(queue, tmp_path / name)) == (3, 0, False)
    frames = [row.kept.frame for row in queue.rows()]
    assert [f.positions[1, 0] for f in frames] == pytest.approx([0.96, 0.97, 0.98], abs=1e-9)
    for f in frames:
        assert f.numbers.tolist() == [8, 1, 1]
        assert f.pbc == (side > 0,) * 3
        np.testing.assert_allclose(f.cell, side * np.eye(3), atol=1e-9)


def test_where_one_structure_is_read_it_is_said(queue: Queue, tmp_path: Path) -> None:
    """Of most formats ASE reads one structure, whatever else is in the file: the user learns it. Of one it would lay
    all structures on top of each other."""
    ase.io.write(tmp_path / "POSCAR", ase.build.molecule("H2O", vacuum=4.0, pbc=True), format="vasp")
    said = str(add(queue, tmp_path / "POSCAR"))
    assert said.startswith("1 frame waits for its label; of a file in this format (vasp) one structure is read\n")
    block = "POSITION\n    1 SOL   O          1    0.000000000    0.000000000    0.000000000\nEND\n"
    (tmp_path / "w.g96").write_text(2 * block)
    with pytest.raises(ConfigError, match=r"w.g96 has several structures, of which ASE makes one"):
        add(queue, tmp_path / "w.g96")


def test_a_file_that_is_being_written(queue: Queue, tmp_path: Path) -> None:
    """Wherever it ends, whole frames are stored and no others; blank lines between files that were joined are none."""
    second = FRAME.format(title="positions{angstrom} cell{angstrom}", x="1.5")
    for cut in range(1, len(second)):
        (tmp_path / "f.xyz").write_text(GOOD + "\n" + second[:cut])
        assert counts(add(queue, tmp_path / "f.xyz")) == (int(cut == 1), int(cut > 1), True), second[:cut]
    (tmp_path / "f.xyz").write_text(GOOD + "\n" + second + "\n")
    assert counts(add(queue, tmp_path / "f.xyz")) == (1, 1, False)
    pdb = tmp_path / "f.pdb"
    with pdb.open("w") as out:
        for seed in range(2):
            one = Structure(seed, abc2h(12.0, 13.0, 14.0, 1.4, 1.5, 1.7))
            title = f" Step: {seed}  Bead:       0 "
            print_file("pdb", one, one, out, title=title, key="positions", dimension="length", units="angstrom",
                       cell_units="angstrom")  # fmt: skip
    whole = pdb.read_text()
    pdb.write_text(whole[: whole.rindex("ATOM") + 10])
    assert counts(add(queue, pdb)) == (1, 0, True)


def test_frames_of_the_user_are_labelled(tmp_path: Path, springs: Springs, capsys: pytest.CaptureFixture[str]) -> None:
    """From files to labels: a queue is made, the frames are chosen among, cut round their first atom and labelled."""
    box = ase.Atoms(cell=np.eye(3) * 12.0, pbc=True)
    for k in range(5):
        water = ase.build.molecule("H2O")
        water.rotate(40.0 * k, "x")
        water.translate([1.0 + 2.4 * k, 1.0, 1.0])
        box += water
    ase.io.write(tmp_path / "box.extxyz", [box, box[3:]])
    queue = tmp_path / "new.db"
    assert main(["queue", "add", str(queue), str(tmp_path / "box.extxyz")]) == 0
    assert main(["queue", "list", str(queue)]) == 0
    assert main(["queue", "show", str(queue), "1"]) == 0
    said = capsys.readouterr().out
    assert "box.extxyz: 2 frames wait for labels" in said
    assert "the frame was added by hand" in said
    ids, choice = from_queue(Queue(queue), Queue(queue).rows(), BASELINE, 1)
    assert len(ids) == 1
    assert choice is not None
    assert np.isfinite(choice.after)
    assert str(labelling.label(Queue(queue), springs(cut=Cut(molecules=2)))) == "2 labelled"
    capsys.readouterr()
    assert main(["queue", "list", str(queue), "--status", "waiting"]) == 0
    assert main(["queue", "list", str(queue), "--status", "labelled"]) == 0
    assert capsys.readouterr().out.splitlines()[::5] == ["the queue is empty", "2 frames: 2 labelled"]
    first = Queue(queue).get(1)
    assert first.label is not None
    cluster = np.array(first.label["structure"]["positions"])
    np.testing.assert_allclose(cluster[0], box.positions[0])
    assert len(cluster) == 6
