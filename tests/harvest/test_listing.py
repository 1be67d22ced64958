"""What a person sees of the queue, and the file that others read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest

from beadwork.errors import ConfigError, QueueError
from beadwork.harvest.listing import describe, export, table
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import Kept

Make = Callable[[int], Kept]


def test_table(queue: Queue, kept: Make) -> None:
    """One line a frame, unknown beads and steps as question marks, and the counts below."""
    assert table(queue.rows()) == "the queue is empty"
    queue.add_all([kept(3), kept(4)])
    queue.claim("ann", 60)
    lines = table(queue.rows()).splitlines()
    assert len(lines) == 5
    assert lines[0].split()[:5] == ["id", "status", "formula", "bead", "step"]
    assert lines[2].split()[:6] == ["1", "claimed", "H4O2", "3", "?", f"{kept(3).max_force_spread:.4f}"]
    assert lines[3].split()[:5] == ["2", "waiting", "H4O2", "?", "40"]
    assert lines[4] == "2 frames: 1 claimed, 1 waiting"


def test_describe(queue: Queue, kept: Make) -> None:
    """The atom with the largest spread is named, and so is the reason of a failure."""
    queue.add(kept(0))
    queue.claim("ann", 60)
    queue.fail(1, "ann", "no convergence", again=False)
    text = describe(queue.get(1))
    worst = int(np.argmax(kept(0).force_spread))
    assert f"atom {worst} ({'OHHOHH'[worst]})" in text
    for part in ("failed", "no convergence", "sha256:" + "b" * 64, "6 atoms", "6.0000 0.0000 0.0000"):
        assert part in text


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
