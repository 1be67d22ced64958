"""`beadwork analyse` as it is typed: a table, CSV files and a picture, with the numbers that Python gives."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from beadwork.analyse.coordinate import parse
from beadwork.analyse.free_energy import free_energy
from beadwork.analyse.runs import open_run, sample
from beadwork.cli import main
from support.exact_runs import RingPolymer


def read(path: Path) -> dict[str, list[str]]:
    """A CSV file by its columns."""
    with open(path, encoding="utf-8") as stream:
        head, *rows = csv.reader(stream)
    return {name: [row[k] for row in rows] for k, name in enumerate(head)}


def test_free_energy_as_it_is_typed(
    ring_polymer: RingPolymer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CSV has F, the errors apart and together and every member's curve; averages are in a second; a curve of
    elsewhere is told at the same places, with the same zero."""
    curve = tmp_path / "elsewhere.txt"
    curve.write_text("0.05 1.0\n0.1 0.0\n0.2 4.0\n")
    command = ["analyse", "free-energy", str(ring_polymer.folder), "--coordinate", "distance:O1,H1", "--bins", "30"]
    command += ["--zero", "0.1", "--at", "0.15", "--against", str(curve), "--out", str(tmp_path / "f")]
    assert main(command) == 0
    said = capsys.readouterr().out
    run = sample(open_run(ring_polymer.folder), [parse("distance:O1,H1")])
    found = free_energy([run], "distance:O1,H1", 30, zero=0.1, at=(0.15,))
    table = read(tmp_path / "f.csv")
    assert list(table)[:2] == ["distance:O1,H1 (Å)", "F (kJ/mol)"]
    assert [float(x) for x in table["F (kJ/mol)"]] == pytest.approx(found.energy.tolist(), rel=1e-6, abs=1e-9)
    assert [float(x) for x in table["both (kJ/mol)"]] == pytest.approx(found.both.tolist(), rel=1e-6, nan_ok=True)
    assert found.members is not None
    member = [float(x) for x in table["member 2 (kJ/mol)"]]
    assert member == pytest.approx((found.energy + found.members[:, 2]).tolist(), rel=1e-6, abs=1e-9)
    averages = read(tmp_path / "f-averages.csv")
    assert averages["observable"][0] == "F(0.15)"
    assert float(averages["value"][0]) == pytest.approx(found.at[0.15].value, rel=1e-6)
    assert averages["unit"] == ["kJ/mol", "Å", "Å", "Å"]
    assert "centroid of 4 beads, 300 K: 2000 frames of one run" in said
    assert "elsewhere.txt at these places: 2.00 kJ/mol" in said
    picture = (tmp_path / "f.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_a_bin_without_frames_has_no_number(tmp_path: Path, ring_polymer: RingPolymer) -> None:
    """Nothing was sampled there, so nothing is written: no infinity for other programs to choke on."""
    command = ["analyse", "free-energy", str(ring_polymer.folder), "--coordinate", "distance:O1,H1"]
    assert main([*command, "--range", "0", "3", "--bins", "60", "--at", "2", "--out", str(tmp_path / "f")]) == 0
    table = read(tmp_path / "f.csv")
    assert 2 < len(table["F (kJ/mol)"]) < 30
    assert np.isfinite([float(x) for x in table["F (kJ/mol)"]]).all()
    assert read(tmp_path / "f-averages.csv")["value"][0] == ""


def test_a_coordinate_that_is_none_ends_with_a_sentence(
    ring_polymer: RingPolymer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and what was not understood; the same for a folder without a run."""
    assert main(["analyse", "free-energy", str(ring_polymer.folder), "--coordinate", "exit()"]) == 2
    assert "is not understood: exit() is nothing that it may have" in capsys.readouterr().err
    assert main(["analyse", "free-energy", str(ring_polymer.folder / "none"), "--coordinate", "dc:O1,O2"]) == 2
    assert "holds no run" in capsys.readouterr().err
