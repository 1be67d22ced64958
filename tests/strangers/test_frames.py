"""Frames as other programs write them: taken for what they are, and named, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest

from beadwork.cli import main
from beadwork.errors import ConfigError
from beadwork.harvest.queue import Queue
from beadwork.label.user_frames import add

HERE = Path(__file__).parent
WATER = np.array([[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """An empty one."""
    return Queue(tmp_path / "queue.db", create=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forces-of-ipi.extxyz", "frame 0 of .* has no positions, but forces$"),
        ("x_centroid-of-ipi.extxyz", "frame 0 of .* has no positions, but x_centroid$"),
        ("instanton_forces.xyz", r"has atoms 1 and 2 0\.0087 Å apart; .* or are these no positions in Å, but"),
        ("types.lammpstrj", r"frame 0 of .* has types instead of elements: .* \(dump_modify ID element O H\)"),
        (
            "types.xyz",
            r"frame 0 of .* has types instead of elements, as LAMMPS's dump xyz .* \(dump_modify ID element O H\)",
        ),
        ("names.xyz", r"has an atom that is called 'OW', which is no element: .* symbol \(perhaps O\)"),
    ],
)
def test_what_is_no_structure_is_refused(queue: Queue, name: str, said: str) -> None:
    """Forces, centroids, types and names of a force field never become frames; nothing is stored."""
    with pytest.raises(ConfigError, match=said):
        add(queue, HERE / name)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("CD1", "HE2", "ND1"), "is called 'CD1', which may be C or Cd: write the element's symbol"),
        (("OS", "HO", "HO"), "is called 'OS', which may be O or Os"),
        (("O", "ho", "ho"), "is called 'ho', which may be H or Ho"),
        (("CA", "H", "H"), "is called 'CA', which may be C or Ca"),
    ],
)
@pytest.mark.parametrize("suffix", ["xyz", "extxyz", "pdb", "gro"])
def test_names_of_a_force_field_are_no_other_elements(
    queue: Queue, tmp_path: Path, names: tuple[str, ...], said: str, suffix: str
) -> None:
    """A δ carbon is no cadmium, and the oxygen of an ether no osmium: what may be two elements is refused."""
    with pytest.raises(ConfigError, match=f"frame 0 of .* has an atom that {said}"):
        add(queue, named(tmp_path / f"f.{suffix}", names))
    assert len(queue) == 0


@pytest.mark.parametrize("suffix", ["xyz", "extxyz", "pdb", "gro"])
def test_symbols_are_elements(queue: Queue, tmp_path: Path, suffix: str) -> None:
    """Written as an element's symbol, with digits or without, cadmium is cadmium, and zinc may be in capitals: no
    element is called Z."""
    add(queue, named(tmp_path / f"f.{suffix}", ("Cd1", "ZN", "Os")))
    assert queue.get(1).kept.frame.numbers.tolist() == [48, 30, 76]


def named(file: Path, names: tuple[str, ...]) -> Path:
    """A file of three atoms with these names, and with no other word on their elements."""
    lines = {
        ".xyz": ["3", "a piece"],
        ".extxyz": ["3", 'Properties=species:S:1:pos:R:3 pbc="F F F"'],
        ".pdb": [],
        ".gro": ["a piece", "3"],
    }[file.suffix]
    for row, (name, x) in enumerate(zip(names, (0.0, 1.5, 3.0), strict=True), start=1):
        lines.append(
            {
                ".pdb": f"ATOM  {row:5d} {name:<4s} LIG A   1    {x:8.3f}{0:8.3f}{0:8.3f}  1.00  0.00",
                ".gro": f"{1:5d}LIG  {name:>5s}{row:5d}{x / 10:8.3f}{0:8.3f}{0:8.3f}",
            }.get(file.suffix, f"{name} {x} 0.0 0.0")
        )
    lines += {".pdb": ["END"], ".gro": ["2.0 2.0 2.0"]}.get(file.suffix, [])
    file.write_text("\n".join(lines) + "\n")
    return file


def test_forces_of_an_instanton_of_one_atom(queue: Queue, tmp_path: Path) -> None:
    """Its title says positions, and no distance tells otherwise: the name that i-PI gives the file does."""
    lines = (HERE / "instanton_forces.xyz").read_text().splitlines(keepends=True)
    file = tmp_path / "simulation.instanton_FINAL_forces_7.xyz"
    file.write_text("".join(["1\n", *lines[1:3]]))
    with pytest.raises(
        ConfigError, match=r"FINAL_forces_7\.xyz has no positions: i-PI writes the forces of an instanton"
    ):
        add(queue, file)


@pytest.mark.parametrize("name", ["deuterium.xyz", "deuterium.pdb", "numbers.xyz", "no-cell-pos-1.xyz"])
def test_water_is_water(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Deuterium is hydrogen, which is said, 8 is oxygen, and a file without a cell is said to be not periodic."""
    assert main(["queue", "add", str(tmp_path / "q.db"), str(HERE / name)]) == 0
    isotopes = "; D and T were read as H, since no label depends on masses" * name.startswith("deuterium")
    assert capsys.readouterr().out == (
        f"{HERE / name}: 1 frame waits for its label{isotopes}\n  1 of H2O, not periodic (the file has no cell)\n"
    )
    (row,) = Queue(tmp_path / "q.db").rows()
    assert row.kept.frame.numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(row.kept.frame.positions, WATER, atol=5.1e-4 if name.endswith("pdb") else 0)


def test_a_file_that_is_refused_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Atoms on top of each other: the file is named, those behind it are added, and the exit code tells of it."""
    water = ase.build.molecule("H2O")
    ase.io.write(tmp_path / "good.xyz", water)
    water.positions[2] = water.positions[1] + [0, 0, 0.01]
    ase.io.write(tmp_path / "bad.xyz", water)
    files = [str(tmp_path / name) for name in ("bad.xyz", "missing.xyz", "good.xyz")]
    assert main(["queue", "add", str(tmp_path / "q.db"), *files]) == ConfigError.exit_code
    said = capsys.readouterr()
    assert said.out.startswith(f"{files[2]}: 1 frame waits for its label\n")
    first, second = said.err.splitlines()
    assert first.startswith(f"beadwork: frame 0 of {files[0]} has atoms 1 and 2 0.0100 Å apart; remove it")
    assert second.startswith(f"beadwork: cannot read frames from {files[1]}: ")
    assert len(Queue(tmp_path / "q.db")) == 1


def test_a_dump_with_elements(queue: Queue) -> None:
    """LAMMPS's scaled coordinates in a tilted box become Å, in the order of the ids."""
    (kind,) = add(queue, HERE / "elements.lammpstrj").kinds
    assert kind == "1 of H2O, periodic, cell 8.00 8.25 8.00 Å, 90 90 75.96°"
    (row,) = queue.rows()
    frame = row.kept.frame
    assert frame.numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(frame.cell, [[8, 0, 0], [2, 8, 0], [0, 0, 8]])
    np.testing.assert_allclose(frame.positions[0], [1.25, 1.0, 1.1173])
    np.testing.assert_allclose(frame.positions[1], [0.125 * 8 + 0.21965 * 2, 1.7572, 0.5308])


def test_what_was_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each formula and periodicity, with its count and cells, the most frequent first."""
    waters = [ase.build.molecule("H2O", cell=[size, 9, 12], pbc=True) for size in (8.0, 8.5, 9.0)]
    waters.append(ase.build.molecule("H2O", cell=[8, 9, 12], pbc=(True, True, False)))
    for shift, atoms in enumerate(waters):  # boxes alone make no other structure
        atoms.positions[0, 2] += 0.1 * shift
    ions = [ase.build.molecule(name) for name in ("OH", "CH4", "C2H6", "NH3", "HCl", "Cl2", "N2", "O2")]
    ase.io.write(tmp_path / "f.extxyz", [ions[0], *waters, *ions[1:]])
    assert main(["queue", "add", str(tmp_path / "q.db"), str(tmp_path / "f.extxyz")]) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"{tmp_path / 'f.extxyz'}: 12 frames wait for labels",
        "  3 of H2O, periodic, cell 8.00 9.00 12.00 Å, 90 90 90° to 9.00 9.00 12.00 Å, 90 90 90°",
        "  1 of HO, not periodic (the file has no cell)",
        "  1 of H2O, periodic along a and b, cell 8.00 9.00 12.00 Å, 90 90 90°",
    ]
    assert main(["queue", "add", str(tmp_path / "other.db"), str(tmp_path / "f.extxyz"), "--not-periodic"]) == 0
    said = capsys.readouterr().out
    assert "  4 of H2O, not periodic\n" in said
    assert "  and 1 more formulas\n" in said


@pytest.mark.parametrize("name", ["water.extxyz", "water.xyz", "elements.lammpstrj", "water.pdb"])
def test_a_torn_file_loses_its_last_frame_and_no_other(tmp_path: Path, name: str) -> None:
    """Wherever the second frame is cut, inside its last number too, the first is stored and it is said."""
    path = tmp_path / name
    if name.endswith("lammpstrj"):
        first = (HERE / name).read_text()
        second = first.replace("0.21965", "0.21905")
    else:
        made = []
        for shift in (0.0, 0.01):
            atoms = ase.build.molecule("H2O", cell=[8, 8, 8], pbc=True)
            atoms.positions[0, 2] += shift
            ase.io.write(path, atoms, format={"xyz": "xyz"}.get(name[6:]))
            made.append(path.read_text())
        first, second = made
    path.write_text(first + second)
    assert add(Queue(tmp_path / "whole.db", create=True), path).stored == 2
    body = len(second.rstrip("\n").removesuffix("ENDMDL"))
    for cut in (*range(1, body, 19), body - 3, body - 1):
        path.write_text(first + second[:cut])
        queue = Queue(tmp_path / f"{cut}.db", create=True)
        added = add(queue, path)
        # of a pdb only its atoms begin a frame: what comes before them belongs to the file
        assert (added.stored, added.torn) == (1, not name.endswith("pdb") or cut >= second.find("ATOM") + 6), cut


def test_a_file_of_one_frame_that_ends_in_a_number(queue: Queue, tmp_path: Path) -> None:
    """Without a newline the last number is whole where it has as many digits as the others; else it is refused."""
    text = (HERE / "numbers.xyz").read_text().rstrip("\n")
    (tmp_path / "f.xyz").write_text(text)
    assert add(queue, tmp_path / "f.xyz").torn is False
    np.testing.assert_array_equal(queue.get(1).kept.frame.positions, WATER)
    (tmp_path / "f.xyz").write_text(text[:-1])
    with pytest.raises(ConfigError, match=r"no whole frame in .*; it ends within one, or without a newline"):
        add(queue, tmp_path / "f.xyz")


def test_lammps_in_other_units(queue: Queue, tmp_path: Path) -> None:
    """A dump that says that it is not in Å is refused."""
    text = (HERE / "elements.lammpstrj").read_text()
    (tmp_path / "f.dump").write_text("ITEM: UNITS\nelectron\n" + text)
    with pytest.raises(ConfigError, match="in LAMMPS's units 'electron'"):
        add(queue, tmp_path / "f.dump")
    (tmp_path / "f.dump").write_text("ITEM: UNITS\nmetal\n" + text)
    assert add(queue, tmp_path / "f.dump").stored == 1
