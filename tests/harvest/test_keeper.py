"""From an evaluation to the queue: what of an earlier run counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beadwork.config import ServeConfig
from beadwork.frame import Frame
from beadwork.harvest.keeper import Keeper
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import Kept


def water(seed: int) -> Frame:
    """One molecule, shaken; every seed another."""
    positions = np.array([[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]])
    shaken = positions + np.random.default_rng(seed).normal(0, 0.1, positions.shape)
    return Frame(np.array([8, 1, 1]), shaken, np.zeros((3, 3)), (False, False, False))


@pytest.mark.parametrize("labelled", [0, 2, 3])
def test_labelled_frames_do_not_count_for_the_limit(tmp_path: Path, labelled: int) -> None:
    """The run after labels and training asks for frames again, from the same input; one that was killed counts on.

    What is labelled is still known: a frame like it is not kept.
    """
    simulation = "c" * 64
    queue = Queue(tmp_path / "q.db", create=True)
    rows = [Kept(water(n), n, 0.01, np.ones(3), np.ones(2), ("a" * 64, "b" * 64), simulation, step=n) for n in range(3)]
    queue.add_all(rows)
    for n in range(labelled):
        queue.claim("me", 60, n + 1)
        queue.finish(n + 1, "me", {"energy": 0.0})
    keeper = Keeper(ServeConfig(queue=str(tmp_path / "q.db"), keep_most=4, cooldown=0), simulation, lambda event: None)
    frames = [water(n) for n in range(20)]
    found = keeper.selector.consider(50, frames, np.full(20, 0.2), np.full(20, 0.01))
    keeper.close()
    kept = [index for index, _ in found]
    assert len(kept) == 4 - (3 - labelled)
    assert not {0, 1, 2} & set(kept)
