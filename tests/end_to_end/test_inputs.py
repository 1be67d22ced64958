"""Every simulation that ships runs, with the models that ship."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from beadwork.examples.init import KINDS, init
from beadwork.ipi.simulation import read_simulation

ROOT = Path(__file__).parents[2]


def test_every_input_is_a_kind() -> None:
    """`beadwork init` can make every simulation that ships with its models, of the kinds that a newcomer looks for."""
    assert {folder for folder, _ in KINDS.values()} == {
        path.parent.name for path in (ROOT / "inputs").glob("*/run.toml")
    }
    assert {"water", "npt", "solute", "cluster", "mts"} <= set(KINDS)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "inputs").glob("*/*.xml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_each_shipped_input_is_read(path: Path) -> None:
    """Every input that ships is one that beadwork reads, with a structure and an address, though only one runs fast."""
    simulation = read_simulation(path)
    assert simulation.systems
    assert simulation.sockets


#: run among the fast tests: two forcefields; the others take the same models in the same way, or one forcefield alone
FAST = ("mts",)
#: inputs beside input.xml in a folder, which take the same models
VARIANTS = [("zundel", "classical.xml"), ("zundel", "eco.xml")]
CASES = [pytest.param(n, "input.xml", marks=() if n in FAST else pytest.mark.slow, id=n) for n in KINDS]
CASES += [pytest.param(n, xml, marks=pytest.mark.slow, id=f"{n}-{xml}") for n, xml in VARIANTS]


@pytest.mark.parametrize(("name", "file"), CASES)
def test_each_shipped_input_runs(ipi, start, tmp_path, name, file) -> None:
    """`beadwork run run.toml` where `beadwork init` was, for two lines of properties, at addresses of its own; no more
    is changed.
    """
    folder = tmp_path / name
    init(folder, name)
    xml = (folder / file).read_text()
    assert "sockets_prefix" not in xml
    xml = xml.replace("<simulation ", f"<simulation sockets_prefix='{tmp_path}/s-' ", 1)
    xml = re.sub(r"<port>\s*\d+\s*</port>", f"<port>{ipi.free_port(folder, name)}</port>", xml)
    (stride,) = map(int, re.findall(r"<properties stride='(\d+)'", xml))
    last = f"<total_steps>{2 * stride}</total_steps>"
    xml, changed = re.subn(r"<total_steps>\s*\d+\s*</total_steps>", last, xml)
    assert changed == 1
    (folder / file).write_text(xml)
    process = start(
        "beadwork", ipi.BIN / "beadwork", "run", "run.toml", "--simulation", file, "--engine", "native", cwd=folder
    )
    assert process.wait(ipi.PATIENCE) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] >= 2 * stride
    table = np.loadtxt(folder / "simulation.out", ndmin=2)
    assert table[:, 0].tolist() == [0, stride, 2 * stride]
    assert np.isfinite(table).all()
