"""Where a simulation of the loop has come to, and what the next one begins with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from beadwork.ipi.simulation import read
from beadwork.learn import simulate

WATER = Path(__file__).parents[2] / "inputs" / "water"


def at(step: int, file: Path) -> bytes:
    """An input that says it is at this step, as i-PI's checkpoints do."""
    text = (WATER / "input.xml").read_text()
    file.write_text(text.replace("<total_steps>", f"<step>{step}</step>\n  <total_steps>"))
    return file.read_bytes()


def test_a_torn_restart_is_passed_over(tmp_path: Path) -> None:
    """i-PI killed as it wrote RESTART: the checkpoint before it is gone on from, by this simulation and by the next
    generation; without one that can be read there is nothing to go on from."""
    folder = tmp_path / "gen-001" / "water"
    simulate.prepare(WATER / "input.xml", folder)
    assert simulate.come_to(folder) is None
    at(100, folder / "simulation.checkpoint")
    whole = at(120, folder / "RESTART")
    assert simulate.come_to(folder) == folder / "RESTART"
    assert simulate.finished(folder)
    (folder / "RESTART").write_bytes(whole[: len(whole) // 2])
    os.utime(folder / "RESTART", (0, 0))
    assert simulate.come_to(folder) == folder / "simulation.checkpoint"
    assert not simulate.finished(folder)
    following = tmp_path / "gen-002" / "water"
    simulate.prepare(WATER / "input.xml", following, simulate.come_to(folder))
    shutil.copy(WATER / "init.xyz", following)  # a checkpoint of i-PI's has its structure in itself
    begun = read(following / "part-0.xml")
    assert (begun.step, begun.total_steps) == (100, 220)
