"""What the doctor says of the machine and of i-PI is what a run will meet."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from beadwork.config import ServeConfig
from beadwork.doctor import machine
from beadwork.doctor import report as doctor
from beadwork.doctor.finding import AMBER, GREEN, RED, Finding
from beadwork.doctor.report import examine
from beadwork.frame import Frame
from beadwork.ipi.simulation import read_simulation
from beadwork.potential.potential import Potential

MODELS = Path(__file__).parents[2] / "models" / "water-revpbe0-d3"


def asked(simulation: Path, **settings: object) -> ServeConfig:
    """The shipped baseline alone, unless more is said."""
    return replace(
        ServeConfig(simulation=str(simulation), baseline=str(MODELS / "baseline"), engine="torchscript"), **settings
    )  # type: ignore[arg-type]


def test_a_server_among_several_is_timed_with_its_part(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five beads each of two servers gets three at most: the bounds of a run are for those, and say so."""
    counts = []

    def timed(potential: Potential, frames: Sequence[Frame], every: int) -> tuple[float, float]:
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
    assert said[0][0].startswith("0.05 s per step for the models: at most 0.864 ns/day, at least 5 s")
    assert said[1][0].startswith(
        "0.03 s per step for the models, with 2 servers as fast as this one: at most 1.44 ns/day, at least 3 s"
    )
    assert [re.search("with (.*) ring", memory)[1] for _, memory in said] == ["the whole", "this server's part of the"]  # type: ignore[index]


def test_a_relative_prefix_counts_from_ipis_folder(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """i-PI binds a relative sockets_prefix where it is started, which need not be where we are."""
    here = tmp_path / "here"
    here.mkdir()
    simulation = read_simulation(write(prefix="sockets/s-", folder=tmp_path / "there"))
    (forcefield,) = simulation.sockets

    def look() -> Finding:
        monkeypatch.chdir(here)
        (found,) = machine.address(forcefield, simulation.directory)
        return found

    assert (look().colour, f"{tmp_path}/there/sockets is no folder" in look().text) == (RED, True)
    (tmp_path / "there" / "sockets").mkdir()
    path = tmp_path / "there" / "sockets" / "s-beadwork"
    assert (look().colour, look().text) == (GREEN, f"{path} is free")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path / "there")
        listener.bind("sockets/s-beadwork")
        listener.listen(1)
        assert look().text == f"a process listens on {path}"
    assert "an i-PI that was killed left it" in look().text


def test_the_doctor_looks_in_ipis_folder(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole visit says where i-PI will bind, and not where the doctor was asked."""
    monkeypatch.setattr(doctor, "_models", lambda *_: iter(()))
    path = write(prefix="s-", folder=tmp_path / "there")
    said = [finding.text for finding in examine(asked(path)) if finding.topic == "address"]
    assert said == [f"{tmp_path}/there/s-beadwork is free"]


@pytest.mark.parametrize(
    ("at", "around", "used", "missed"),
    [
        ({}, "{}", (), []),
        ({"one": "sum", "two": "delta"}, "{}", (), []),
        ({"one": "sum"}, "{}", (), ["two"]),
        ({"one": "sum"}, "{}", ("one",), []),
        ({"one": "sum"}, "<ffcommittee name='both'>{}</ffcommittee>", ("both",), ["two"]),
    ],
)
def test_forcefields_that_nobody_serves(
    write: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    at: dict[str, str],
    around: str,
    used: Sequence[str],
    missed: list[str],
) -> None:
    """i-PI waits for ever for a forcefield that a system uses and nobody answers, a committee's too: it is named."""
    monkeypatch.setattr(doctor, "_models", lambda *_: iter(()))
    path = write(names=("one", "two") if at else ("one",), around=around, used=used)
    found = [finding for finding in examine(asked(path, at=at)) if "it is not served here" in finding.text]
    assert [(finding.colour, finding.topic, finding.text.partition(":")[0]) for finding in found] == [
        (AMBER, "i-PI", name) for name in missed
    ]
    assert all(f"--at {name}=" in finding.remedy for finding, name in zip(found, missed, strict=True))
