"""A series on disk gives what the trajectories gave."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from beadwork.analyse.coordinate import parse
from beadwork.analyse.free_energy import free_energy
from beadwork.analyse.runs import Sampled, open_run, sample
from beadwork.analyse.series import read_series, write_series
from beadwork.cli import main
from beadwork.errors import ConfigError
from support.exact_runs import BEADS, RingPolymer

DISTANCE = "distance:O1,H1"


@pytest.mark.parametrize("of", ["centroid", "beads"])
def test_a_free_energy_from_a_series_is_that_of_the_run(ring_polymer: RingPolymer, tmp_path: Path, of: str) -> None:
    """F, its errors and its members, several values a step, energies that are written of some steps alone."""
    run = sample(open_run(ring_polymer.folder), [parse(DISTANCE), parse("2 * distance(O1, H1)")], of)
    assert run.energies is not None
    run.energies[1::2] = np.nan
    path = tmp_path / "piece.csv.gz"
    write_series(path, run)
    again = read_series(path, [DISTANCE])
    assert list(again.values) == [DISTANCE]
    assert again.values[DISTANCE].shape == (2000, 1 if of == "centroid" else BEADS)
    assert again.steps.tolist() == run.steps.tolist()
    options = {"bins": 20, "reach": (0.0, 0.5), "zero": 0.1}
    wanted, found = (free_energy([one], DISTANCE, **options) for one in (run, again))  # type: ignore[arg-type]
    for name in ("energy", "statistical", "committee", "members"):
        assert np.allclose(getattr(found, name), getattr(wanted, name), atol=2e-2, equal_nan=True), name
    assert found.averages["mean"].value == pytest.approx(wanted.averages["mean"].value, abs=1e-6)
    assert found.averages["mean"].committee == pytest.approx(wanted.averages["mean"].committee, rel=1e-3)
    assert (found.whose, found.kelvin) == (wanted.whose, wanted.kelvin)
    written = path.read_bytes()
    write_series(path, run)
    assert path.read_bytes() == written


def test_small_and_large_coordinates_keep_their_digits(tmp_path: Path) -> None:
    """The repulsion of a Lennard-Jones pair, r^-12 of 2.8 Å, about 4e-6: a series has it to nine digits, where it had
    eleven values in all; and so it has what is large."""
    small = np.linspace(2.6, 3.0, 50)[:, None] ** -12
    values = {"distance(O1, O2) ** (-12)": small, "distance(O1, O2) ** 12": 1 / small}
    sampled = Sampled(np.arange(50), values, None, "", 300.0, 1, "beads", 0.5)
    write_series(tmp_path / "piece.csv.gz", sampled)
    found = read_series(tmp_path / "piece.csv.gz", list(values)).values
    for name, wanted in values.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-8)


def test_series_as_they_are_typed(
    ring_polymer: RingPolymer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made of a run by one command, read by another, with the beginning left out by either."""
    stem = str(tmp_path / "piece")
    command = ["analyse", "series", str(ring_polymer.folder), "--coordinate", DISTANCE, "angle:O1,H1,0", "--out", stem]
    assert main(command) == 2
    assert "angle:O1,H1,0 names one atom twice" in capsys.readouterr().err
    command[command.index("angle:O1,H1,0")] = "3 * distance(O1, H1)"
    assert main([*command, "--skip", "1"]) == 0
    assert "1800 frames in" in capsys.readouterr().out
    energy = ["analyse", "free-energy", f"{stem}.csv.gz", "--coordinate", DISTANCE, "--out", str(tmp_path / "f")]
    assert main([*energy, "--skip", "5"]) == 0
    assert "1000 frames of one run" in capsys.readouterr().out
    energy[energy.index(DISTANCE)] = "distance:H1,O1"
    assert main(energy) == 2
    assert "has no distance:H1,O1; it has distance:O1,H1, 3 * distance(O1, H1)" in capsys.readouterr().err
    command[2:3] = [str(ring_polymer.folder)] * 2
    assert main(command) == 2


def test_what_is_no_series_is_refused(ring_polymer: RingPolymer, tmp_path: Path) -> None:
    """A file that is cut, of something else, or not there."""
    path = tmp_path / "piece.csv.gz"
    write_series(path, sample(open_run(ring_polymer.folder), [parse(DISTANCE)]))
    whole = path.read_bytes()
    for content in (
        whole[:-400],
        whole[:300] + whole[500:],
        b"text",
        gzip.compress(b"a,b\n1,2\n"),
        gzip.compress(b"# {}\nstep\n"),
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            read_series(path, [DISTANCE])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_series(tmp_path / "none.csv.gz", [DISTANCE])
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match="no frames after 99 ps"):
        read_series(path, [DISTANCE], skip=99)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kelvin": 300.0', '"kelvin": "warm"'),
        ('"kelvin": 300.0', '"kelvin": NaN'),
        ('"beads": 4', '"beads": 0'),
        ('"time_step": 0.5', '"time_step": -1'),
        ('": 1}', '": -1}'),
        ('": 1}', '": 9}'),
        ("\n10,", "\n-10,"),
        ("\n10,", "\nnan,"),
        ("\n10,", "\n10,inf"),
    ],
)
def test_a_series_whose_parts_do_not_agree_is_refused(tmp_path: Path, old: str, new: str) -> None:
    """A head that is not of its columns, and numbers that are none, give no average."""
    path = tmp_path / "piece.csv.gz"
    values = {DISTANCE: np.linspace(0.9, 1.1, 9)[:, None]}
    write_series(path, Sampled(np.arange(9) * 10, values, None, "none", 300.0, 4, "beads", 0.5))
    text = gzip.decompress(path.read_bytes()).decode()
    assert text.count(old) == 1
    path.write_bytes(gzip.compress(text.replace(old, new).encode()))
    with pytest.raises(ConfigError, match="make it with beadwork analyse series"):
        read_series(path, [DISTANCE])
