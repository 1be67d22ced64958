"""Every simulation that ships runs, with the models that ship."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "water-revpbe0-d3"
INPUTS = sorted(path.parent.name for path in (ROOT / "inputs").glob("*/input.xml"))


def test_there_are_inputs() -> None:
    """Six kinds of simulation ship."""
    assert len(INPUTS) >= 6


#: runs among the slow tests: its way to i-PI is tried in test_parity, and its model in the others
SLOW = ("water-inet",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in INPUTS])
def test_each_shipped_input_runs(ipi, start, tmp_path, name) -> None:
    """`beadwork run` on a copy of the folder, for two steps, at addresses of its own; only these three are changed."""
    folder = tmp_path / name
    shutil.copytree(ROOT / "inputs" / name, folder)
    xml = (folder / "input.xml").read_text()
    assert "sockets_prefix" not in xml
    xml = xml.replace("<simulation ", f"<simulation sockets_prefix='{tmp_path}/s-' ", 1)
    xml = re.sub(r"<port>\s*\d+\s*</port>", f"<port>{ipi.free_port(folder, name)}</port>", xml)
    xml, changed = re.subn(r"<total_steps>\s*\d+\s*</total_steps>", "<total_steps>2</total_steps>", xml)
    assert changed == 1
    (folder / "input.xml").write_text(xml)
    apart = ["--at", "baseline=baseline", "delta=delta"] if "<ffsocket name='delta'" in xml else []
    members = [MODELS / f"delta-{k}" for k in range(4)]
    process = start(
        "beadwork", ipi.BIN / "beadwork", "run", "input.xml", "--baseline", MODELS / "baseline", "--delta", *members,
        *apart, "--engine", "native", "--queue", "queue.db", cwd=folder,
    )  # fmt: skip
    assert process.wait(ipi.PATIENCE) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] >= 2
    table = np.loadtxt(folder / "simulation.out", ndmin=2)
    assert table[:, 0].tolist() == [0, 1, 2]
    assert np.isfinite(table).all()
