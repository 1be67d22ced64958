"""Queues of small frames, and labellers whose calls are counted: fixtures of the tests of labelling."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.frame import Frame
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.label.spec import Spec

WATER = np.array([[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])


def kept(frame: Frame, seed: int = 0) -> KeptFrame:
    """A frame as a server would keep it."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0, 1, len(frame.numbers))
    return KeptFrame(frame, seed, 0.01, spread, rng.normal(size=4), ("a" * 64, "b" * 64), "c" * 64, step=seed)


def water(seed: int) -> Frame:
    """One molecule, shaken; every seed another."""
    shaken = WATER + np.random.default_rng(seed).normal(0, 0.05, WATER.shape)
    return Frame(np.array([8, 1, 1]), shaken, np.zeros((3, 3)), (False, False, False))


@pytest.fixture
def fill(tmp_path: Path) -> Callable[[int], Queue]:
    """A maker of queues that hold so many waters."""

    def make(count: int) -> Queue:
        queue = Queue(tmp_path / "queue.db", create=True)
        assert None not in queue.add_all([kept(water(seed), seed) for seed in range(count)])
        return queue

    return make


class Diary:
    """What the toy calculator wrote of its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> list[tuple[int, str]]:
        """Process and energy of each call."""
        file = self.folder / name
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    @property
    def calls(self) -> list[tuple[int, str]]:
        """Calls begun."""
        return self.read("calls")

    @property
    def ends(self) -> list[tuple[int, str]]:
        """Calls that came to their end."""
        return self.read("ends")


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    """The diary of this test."""
    return Diary(tmp_path)


@pytest.fixture
def springs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Spec]:
    """A maker of specs of the toy calculator; this process and those that it starts can import it."""
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)

    def make(theory: str = "springs", arguments: dict[str, Any] | None = None, **changes: Any) -> Spec:
        settings = {
            "calculator": "toy_calculator:Springs",
            "theory": theory,
            "ignores_charge": True,
            "arguments": {"where": str(tmp_path)} | (arguments or {}),
            "estimate": 3.0,
        }
        return replace(Spec("ase", json.loads(json.dumps(settings)), lease=30.0), **changes)

    return make
