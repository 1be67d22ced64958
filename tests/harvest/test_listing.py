"""What a person sees of the queue, and the file that others read."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest

from beadwork.errors import ConfigError, QueueError
from beadwork.harvest.listing import export, format_row, format_table
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame, to_ase

Make = Callable[[int], KeptFrame]


def test_the_table_has_a_line_for_each_frame_and_counts(queue: Queue, kept: Make) -> None:
    """One line a frame, unknown beads and steps as question marks, and the counts below."""
    assert format_table(queue.rows()) == "the queue is empty"
    queue.add_all([kept(3), kept(4)])
    queue.claim("ann", 60)
    lines = format_table(queue.rows()).splitlines()
    assert len(lines) == 5
    assert lines[0].split()[:5] == ["id", "status", "formula", "bead", "step"]
    assert lines[2].split()[:6] == ["1", "claimed", "H4O2", "3", "?", f"{kept(3).max_force_spread:.4f}"]
    assert lines[3].split()[:5] == ["2", "waiting", "H4O2", "?", "40"]
    assert lines[4] == "2 frames: 1 claimed, 1 waiting"


def test_one_frame_shows_its_worst_atom_and_its_failure(queue: Queue, kept: Make) -> None:
    """The atom with the largest spread is named, and so is the reason of a failure."""
    queue.add(kept(0))
    queue.claim("ann", 60)
    queue.fail(1, "ann", "no convergence", again=False)
    text = format_row(queue.get(1))
    worst = int(np.argmax(kept(0).force_spread))
    assert f"atom {worst} ({'OHHOHH'[worst]})" in text
    for part in ("failed", "no convergence", "sha256:" + "b" * 64, "6 atoms", "6.0000 0.0000 0.0000"):
        assert part in text


def test_charge_and_spin_are_shown_where_a_frame_says_them(queue: Queue, kept: Make) -> None:
    """An ion beside what says nothing of its charge: columns of their own, left out where no frame has either."""
    ion = kept(1)
    queue.add_all([kept(0), replace(ion, frame=replace(ion.frame, charge=1, spin=0))])
    lines = format_table(queue.rows()).splitlines()
    assert lines[0].split()[2:6] == ["formula", "charge", "spin", "bead"]
    assert lines[2].split()[2:6] == ["H4O2", "?", "?", "0"]
    assert lines[3].split()[2:6] == ["H4O2", "1", "0", "1"]
    assert "charge" not in format_table(queue.rows()[:1])
    said = [dict(line.split("  ", 1) for line in format_row(queue.get(id)).splitlines()) for id in (1, 2)]
    assert [one["charge (e)"].strip() for one in said] == ["not said", "1"]
    assert [one["unpaired electrons"].strip() for one in said] == ["not said", "0"]


def test_novelty_is_told_by_part(queue: Queue, kept: Make) -> None:
    """The table has the largest novelty, its atom, to whom it is new and what the frame was kept for; one frame alone
    has it for each part that knows. Where nobody knows, or the row is of an earlier release, it is a question mark."""
    queue.add_all([kept(0), kept(1), kept(2)])
    atoms, keys, data = to_ase(kept(3), "waiting")
    for name in ("kept_for", "novelty_max"):
        keys.pop(name, None)
    del data["novelty"]  # as 0.1.0's first rows
    with ase.db.connect(queue.url, use_lock_file=False) as old:
        old.write(atoms, keys, data)
    lines = [line.split() for line in format_table(queue.rows()).splitlines()]
    assert lines[0][9:] == ["novelty", "of", "atom", "new", "to", "kept", "for", "kept", "at"]
    told = [line[7:-2] for line in lines[2:-1]]
    names = "OHHOHH"
    expected = []
    for seed in (1, 2):
        part, of = max(kept(seed).novelty.items(), key=lambda item: item[1].max())
        atom = int(of.argmax())
        whose = {"baseline": ["the", "baseline"], "delta": ["Δ"]}[part]
        expected.append([f"{of.max():.2f}", f"{atom}", f"({names[atom]})", *whose])
    nobody = ["?", "?", "?", "spread"]
    assert told == [nobody, [*expected[0], "novelty"], [*expected[1], "spread+novelty"], nobody]
    text = format_row(queue.get(3))
    for part, name in (("baseline", "the baseline"), ("delta", "Δ")):
        of = kept(2).novelty[part]
        assert f"novelty for {name}" in text
        assert f"{of.max():.2f}, atom {of.argmax()} ({names[of.argmax()]})" in text
    assert "spread and novelty" in text
    for id in (1, 4):
        assert "unknown: no model says what it was trained on" in format_row(queue.get(id))


def test_one_model_has_no_spread(queue: Queue, kept: Make) -> None:
    """A frame that one Δ model by itself kept for its novelty: no atom is named as the one of a spread that is nan."""
    queue.add(replace(kept(1), force_spread=np.full(6, np.nan), energy_spread=np.nan, member_energies=np.empty(0)))
    assert "nan" not in format_table(queue.rows()) + format_row(queue.get(1))


def test_novelty_is_exported(queue: Queue, kept: Make, tmp_path: Path) -> None:
    """Each part an array, and the largest with its atom; of a cluster that was cut out its own atoms, and the atom that
    is newest only where it is one of them."""
    queue.add_all([kept(0), kept(2), replace(kept(5), frame=kept(5).frame)])
    frame, of = kept(5).frame, kept(5).novelty
    value, newest, part = max((float(v.max()), int(v.argmax()), p) for p, v in of.items())
    for held in ([(newest + 1) % 6, newest], [(newest + 1) % 6, (newest + 2) % 6]):
        cut = {"numbers": frame.numbers[held], "positions": frame.positions[held], "cell": np.zeros((3, 3))}
        label = {"energy": 0.0, "energy_error": 0.0, "forces": None, "forces_error": None, "charge": 0, "spin": 0}
        label |= {"method": "m", "code": "c", "version": "", "structure": cut | {"pbc": False, "atoms": held}}
        row = replace(queue.get(3), status="labelled", label=label)
        export([queue.get(1), queue.get(2), row], tmp_path / "frames.xyz")
        nobody, whole, cluster = ase.io.read(tmp_path / "frames.xyz", index=":")
        assert not any("novelty" in name for name in (*nobody.arrays, *nobody.info))
        assert nobody.info["kept_for"] == "spread"
        for name, values in kept(2).novelty.items():
            np.testing.assert_allclose(whole.arrays[f"novelty_{name}"], values, atol=1e-8)
        assert whole.info["kept_for"] == "spread+novelty"
        assert whole.arrays[f"novelty_{whole.info['novelty_of']}"].argmax() == whole.info["novelty_atom"]
        for name, values in of.items():
            np.testing.assert_allclose(cluster.arrays[f"novelty_{name}"], values[held], atol=1e-8)
        assert (cluster.info["novelty_max"], cluster.info["novelty_of"]) == (pytest.approx(value), part)
        assert cluster.info.get("novelty_atom") == (1 if newest in held else None)


def test_export_reads_back(queue: Queue, kept: Make, tmp_path: Path) -> None:
    """ase.io.read gives the structures and what was said of them, and leaves no half-written file."""
    queue.add_all([kept(seed) for seed in range(5)])
    export(queue.rows(), tmp_path / "frames.xyz")
    assert [entry.name for entry in tmp_path.glob("*xyz*")] == ["frames.xyz"]
    atoms = ase.io.read(tmp_path / "frames.xyz", index=":")
    assert len(atoms) == 5
    for seed, one in enumerate(atoms):
        made = kept(seed)
        np.testing.assert_array_equal(one.numbers, made.frame.numbers)
        np.testing.assert_allclose(one.positions, made.frame.positions, atol=1e-8)
        np.testing.assert_allclose(one.cell.array, made.frame.cell, atol=1e-12)
        np.testing.assert_allclose(one.arrays["force_spread"], made.force_spread, atol=1e-8)
        assert one.info["energy_spread"] == pytest.approx(made.energy_spread, rel=1e-12)
        assert [one.info[f"member_energy_{m}"] for m in range(4)] == pytest.approx(list(made.member_energies))
        assert one.info.get("bead") == made.frame.bead
        assert one.info.get("step") == made.step
        assert one.info["simulation"] == made.simulation
        assert one.info["status"] == "waiting"


def test_export_where_nothing_can_be_written(queue: Queue, kept: Make, tmp_path: Path) -> None:
    """A missing directory is named, and so is an empty choice."""
    queue.add(kept(0))
    with pytest.raises(QueueError, match=r"cannot write .*nowhere.*directory"):
        export(queue.rows(), tmp_path / "nowhere" / "frames.xyz")
    with pytest.raises(QueueError, match="no frames"):
        export([], tmp_path / "frames.xyz")
    for name in ("frames.pdb", "frames", "frames.db"):
        with pytest.raises(ConfigError, match=rf"{name}: frames are written as extended XYZ; .* ends in \.xyz or"):
            export(queue.rows(), tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir() if "frames" in entry.name] == []
    assert not (tmp_path / "frames.xyz").exists()


def test_export_into_what_is_no_file_of_its_own(queue: Queue, kept: Make, tmp_path: Path) -> None:
    """A pipe and a device stay what they are and get the frames; a link stays a link, and its file is replaced.

    /dev/stdout of a shell that appends to a file adds to it, with nothing but frames in it.
    """
    queue.add_all([kept(seed) for seed in range(2)])
    pipe, link, file, null = (tmp_path / name for name in ("pipe", "link.xyz", "file.xyz", "null"))
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        export(queue.rows(), pipe)
        piped, _ = reader.communicate(timeout=30)
    assert pipe.is_fifo()
    assert len(ase.io.read(io.StringIO(piped), ":", format="extxyz")) == 2

    null.symlink_to("/dev/null")
    export(queue.rows(), null)
    assert null.is_symlink()
    assert Path("/dev/null").is_char_device()

    file.write_text("old")
    link.symlink_to(file.name)
    export(queue.rows(), link)
    assert link.is_symlink()
    assert not file.is_symlink()
    assert len(ase.io.read(file, ":")) == 2

    with file.open("a") as out:
        command = [sys.executable, "-m", "beadwork.cli", "queue", "export", queue.name, "/dev/stdout"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "2 frames in /dev/stdout, 0 with their label\n")
    assert len(ase.io.read(file, ":")) == 4


def test_a_device_in_a_folder_stays_one(queue: Queue, kept: Make, tmp_path: Path) -> None:
    """Root can make one anywhere: it is written to, not replaced by a file."""
    device = tmp_path / "frames.xyz"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        device.open("a").close()
    except OSError as error:
        pytest.skip(f"this user makes no devices: {error}")
    queue.add(kept(0))
    export(queue.rows(), device)
    assert device.is_char_device()
