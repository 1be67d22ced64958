"""A second run in the folder of a live one is refused before it has touched a file. Whole runs are in end_to_end/."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from beadwork.cli import main
from beadwork.disk import alone
from beadwork.ipi.process import LOCK
from beadwork.observe.status import claimed

WATER = Path(__file__).parents[2] / "inputs" / "water"
OURS = ("beadwork.out", "summary.json", "status.json", "i-pi.log", "last-frames.extxyz")


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run, and what it must find again there, EXIT included."""
    monkeypatch.chdir(tmp_path)
    for name in ("input.xml", "init.xyz"):
        shutil.copy(WATER / name, tmp_path)
    text = (tmp_path / "input.xml").read_text().replace("<simulation ", "<simulation sockets_prefix='./' ")
    (tmp_path / "input.xml").write_text(text)
    for name in (*OURS, "EXIT"):
        (tmp_path / name).write_text(name)
    yield tmp_path
    for name in (*OURS, "EXIT"):
        assert (tmp_path / name).read_text() == name
    assert not list(tmp_path.glob("*.1"))


@pytest.mark.parametrize("command", ["run", "run --devices cpu,cpu", "serve --patience 5", "serve --devices cpu,cpu"])
def test_a_folder_in_use(live: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever serves, and at whatever address: the live run keeps its record, its summary and its status."""
    with claimed(Path()):
        verb, *options = command.split()
        assert main([verb, "input.xml", "--baseline", "nowhere", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"beadwork: a run is under way in {live} (process ")
    assert said.endswith("; end it, or choose another folder with --out\n")


def test_two_ipis_of_ours_in_one_folder(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With outputs of its own a second run would still share i-PI's EXIT and RESTART with the first; a server may."""
    with alone(live / LOCK, "", ""):
        for devices in ([], ["--devices", "cpu,cpu"]):
            assert main(["run", "input.xml", "--baseline", "nowhere", "--out", "ours", *devices]) == 2
            assert f"started an i-PI in {live} already" in capsys.readouterr().err
        assert main(["serve", "input.xml", "--baseline", "nowhere", "--out", "ours"]) == 4  # which it asks for later
    assert main(["run", "input.xml", "--baseline", "nowhere", "--out", "ours"]) == 4


def test_an_address_in_use(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is asked for before the models are loaded, and before anything is written."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("./beadwork-water")
        other.listen()
        assert main(["run", "input.xml", "--baseline", "nowhere"]) == 3
    assert "is held by another i-PI" in capsys.readouterr().err


def test_what_only_reads_reads_on(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """status and doctor look at a live run's folder."""
    with claimed(Path()), alone(live / LOCK, "", ""):
        assert main(["status"]) == 2  # the file here is none
        assert main(["doctor", "input.xml", "--baseline", "nowhere"]) == 4
    assert "under way" not in "".join(capsys.readouterr())
