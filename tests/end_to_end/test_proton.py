"""The tutorial of docs/proton.md, in its short form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "proton.md").read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_short_form_runs_from_an_empty_folder(tmp_path) -> None:
    """Labels, a baseline, Δ, its test, two simulations and their curves, by the commands that the tutorial gives."""
    environment = os.environ | {
        "HOME_OF": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(["bash", "-e"], input=BLOCKS[0], text=True, cwd=tmp_path, env=environment, timeout=2900)
    assert done.returncode == 0
    table = (tmp_path / "figures" / "table.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in table.splitlines()[2:]}
    assert list(rows) == ["classical", "32 beads"]
    for row in rows.values():
        # the oxygens of H5O2+ are this far apart on any potential that is one
        assert 2.3 < float(row[4].split()[0]) < 2.6
    assert (tmp_path / "figures" / "proton.png").stat().st_size > 10_000


def test_every_file_of_the_tutorial_is_there() -> None:
    """What its commands name of models/zundel-cc exists, and the scripts know the steps that they are asked for."""
    text = "".join(BLOCKS)
    named = set(re.findall(r"\$M/([\w-]+\.(?:py|toml|extxyz\.gz))", text)) | set(
        re.findall(r"models/zundel-cc/([\w.-]+\.py)", text)
    )
    assert {"make.py", "simulate.py", "figures.py"} < named
    for name in named:
        assert (ROOT / "models" / "zundel-cc" / name).exists(), name
    steps = set(re.findall(r"make\.py (\w+)", text))
    source = (ROOT / "models" / "zundel-cc" / "make.py").read_text()
    assert steps == set(re.findall(r'"(\w+)": \w+[,}]', source.split("STEPS")[1]))
