"""An umbrella window of H5O2+: served by beadwork, held by PLUMED in i-PI, analysed."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beadwork.analyse.runs import open_run
from beadwork.cli import main
from beadwork.examples.init import init


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_window_of_the_zundel_cation(ipi, start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`beadwork run` with the shipped umbrella.xml holds the oxygens apart, where they would not go by themselves: the
    restraint is the bias that i-PI wrote, frame by frame, and one at another place is refused."""
    tried = subprocess.run([sys.executable, "-c", "import plumed; plumed.Plumed()"], capture_output=True)
    if tried.returncode:
        pytest.skip("PLUMED is not installed")
    folder = tmp_path / "zundel"
    init(folder, "zundel")
    text = (folder / "umbrella.xml").read_text().replace("22000", "400")
    text = text.replace("<simulation ", f"<simulation sockets_prefix='{tmp_path}/s-' ", 1)
    (folder / "umbrella.xml").write_text(text)
    process = start("beadwork", ipi.BIN / "beadwork", "run", "run.toml", "--simulation", "umbrella.xml", cwd=folder)
    assert process.wait(1200) == 0
    bias = open_run(folder).properties["ensemble_bias"]
    assert len(bias.values) == 41
    assert np.ptp(bias.values) > 0
    command = ["analyse", "free-energy", str(folder), "--coordinate", "distance:O1,O2", "--kappa", "400"]
    command += ["--skip", "0.05"]
    assert main([*command, "--centres", "2.6"]) == 0
    with open(folder / "free-energy-averages.csv", encoding="utf-8") as stream:
        rows = {row["observable"]: float(row["value"]) for row in csv.DictReader(stream)}
    assert 2.3 < rows["mean of distance:O1,O2"] < 2.7
    capsys.readouterr()
    assert main([*command, "--centres", "2.5"]) == 2
    assert "the bias that i-PI wrote is" in capsys.readouterr().err
