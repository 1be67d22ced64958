"""What the tests of the doctor share: an i-PI input whose every part can be wrong, and findings told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from beadwork.config import ServeConfig
from beadwork.doctor.finding import Finding

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "water-revpbe0-d3"
WATER = (ROOT / "inputs" / "water" / "init.xyz").read_text()
#: water in a tetrahedron's angle, in its own words
MONOMER = "3\n# CELL(abcABC): {} 90 90 90 cell{{angstrom}} positions{{angstrom}}\nO 1 1 1\nH 1.96 1 1\nH 0.76 1.93 1\n"


@pytest.fixture(name="write")
def input_writer(tmp_path: Path) -> Callable[..., Path]:
    """Write an i-PI input of its own address, two beads, and its start structure; return the XML's path."""

    def call(
        start: str = WATER,
        socket: str = "<batch_size>2</batch_size><latency>1e-3</latency>",
        mode: str = "mode='unix'",
        address: str = "water",
        cell: str = "",
        steps: int = 100,
        output: str = "",
        step: str = "",
    ) -> Path:
        (tmp_path / "init.xyz").write_text(start)
        path = tmp_path / "input.xml"
        path.write_text(
            f"<simulation sockets_prefix='{tmp_path}/s-'><output prefix='run'>{output}</output>{step}"
            f"<total_steps>{steps}</total_steps>"
            f"<ffsocket name='beadwork' {mode}><address>{address}</address>{socket}</ffsocket>"
            f"<system><initialize nbeads='2'><file mode='xyz'>init.xyz</file>{cell}</initialize>"
            "<forces><force forcefield='beadwork'/></forces><motion mode='dynamics'><dynamics mode='nve'>"
            "<timestep units='femtosecond'>0.5</timestep></dynamics></motion></system></simulation>"
        )
        return path

    return call


def config(simulation: Path, **settings: object) -> ServeConfig:
    """The shipped baseline alone, unless more is said."""
    return replace(
        ServeConfig(simulation=str(simulation), baseline=str(MODELS / "baseline"), engine="torchscript"), **settings
    )  # type: ignore[arg-type]


def only(findings: Iterator[Finding] | list[Finding], topic: str = "") -> Finding:
    """The one finding of a topic."""
    found = [finding for finding in findings if topic in ("", finding.topic)]
    assert len(found) == 1, found
    return found[0]


def colours(findings: Iterator[Finding]) -> list[str]:
    """The colours alone."""
    return [finding.colour for finding in findings]
