"""What the doctor says of the machine and of i-PI is what a run will meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from beadwork.checks import machine
from beadwork.config import ServeConfig
from beadwork.doctor import examine
from beadwork.frame import Frame
from beadwork.potential.delta import Potential

MODELS = Path(__file__).parents[2] / "models" / "water-revpbe0-d3"


def asked(simulation: Path, **settings: object) -> ServeConfig:
    """The shipped baseline alone, unless more is said."""
    return replace(ServeConfig(str(simulation), str(MODELS / "baseline"), engine="torchscript"), **settings)  # type: ignore[arg-type]


def test_a_server_among_several_is_timed_with_its_part(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five beads each of two servers gets three at most: the bounds of a run are for those, and say so."""
    counts = []

    def timed(potential: Potential, frames: Sequence[Frame]) -> tuple[float, float]:
        counts.append(len(frames))
        return 0.01 * len(frames), 0.01 * len(frames)

    monkeypatch.setattr(machine, "timed", timed)
    path = write(beads=5, batch=3)
    said = []
    for servers in (0, 2):
        found = {finding.topic: finding.text for finding in examine(asked(path, servers=servers))}
        said.append((found["time"], found["memory"]))
    assert counts == [5, 3]
    # 0.5 fs in 0.05 and in 0.03 s
    assert said[0][0].startswith("0.05 s a step for the models: at most 0.864 ns a day, at least 5 s")
    assert said[1][0].startswith(
        "0.03 s a step for the models, with 2 servers as fast as this one: at most 1.44 ns a day, at least 3 s"
    )
    assert [re.search("with (.*) ring", memory)[1] for _, memory in said] == ["the whole", "this server's part of the"]  # type: ignore[index]
