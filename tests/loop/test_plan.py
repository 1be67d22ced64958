"""`beadwork learn --dry-run`: what would be done, from the loop that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from beadwork.cli import main
from beadwork.errors import SimulationError
from beadwork.examples.init import init

pytest.importorskip("pyscf", reason="pip install pyscf")


def test_the_loop_that_ships(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be begun as it is copied, its level of theory is the committee's, and nothing is made."""
    init(tmp_path / "mine", "cluster")
    before = sorted(tmp_path.rglob("*"))
    assert main(["learn", str(tmp_path / "mine" / "loop.toml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "H5O2, 16 beads, 1000 steps" in said
    assert "20 at most, MP2/cc-pVDZ, all electrons, 2 at once" in said
    assert "from a force spread of 0.4783 eV/Å" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_what_would_fail_later_fails_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An input that has no step left, a structure that is missing, and a committee that is none, are told as `learn`
    itself tells them."""
    init(tmp_path / "mine", "cluster")
    loop = tmp_path / "mine" / "loop.toml"
    told = loop.read_text()
    loop.write_text(told.replace('delta = "models/water-highlevel"', 'delta = "models/water-highlevel/delta-0"'))
    assert main(["learn", str(loop), "--dry-run"]) == 2
    assert "no folder of a committee" in capsys.readouterr().err
    loop.write_text(told)
    xml = tmp_path / "mine" / "input.xml"
    xml.write_text(xml.read_text().replace("<total_steps>", "<step>1000</step><total_steps>"))
    assert main(["learn", str(loop), "--dry-run"]) == 2
    assert "begins at step 1000 and ends at step 1000" in capsys.readouterr().err
    (tmp_path / "mine" / "init.xyz").unlink()
    assert main(["learn", str(loop), "--dry-run"]) == SimulationError.exit_code
    assert "init.xyz" in capsys.readouterr().err
