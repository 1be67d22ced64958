"""What several servers find in the folder of their outputs, and who reads what they say."""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path

import numpy as np
import pytest

from beadwork.config import ServeConfig
from beadwork.errors import ConfigError
from beadwork.frame import Frame
from beadwork.observe import status
from beadwork.observe.last import NAME, LastFrames, save_last_frames
from beadwork.serve.supervisor import Devices


def devices(out: Path) -> Devices:
    """Not started."""
    return Devices(ServeConfig(simulation="a.xml", baseline="b", devices=["cpu", "cpu"], out=str(out)), 2)


def test_an_earlier_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """`beadwork status` tells of this run's servers: not of one alone, and not of more than there are now."""
    for name in ("dev-0", "dev-1", "dev-2", "dev-3", "dev-1-died-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serve.toml").touch()
    (tmp_path / "dev-7").mkdir()  # the user's own
    (tmp_path / status.NAME).write_text("{}")
    (tmp_path / "dev-2" / "beadwork.out").write_text("kept")
    devices(tmp_path)._tidy()
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"dev-0", "dev-1", "dev-1-died-1", "dev-2-earlier-1", "dev-3-earlier-1", "dev-7"}
    assert (tmp_path / "dev-2-earlier-1" / "beadwork.out").read_text() == "kept"


@pytest.mark.parametrize("where", ["", "dev-5"])
def test_a_run_under_way_is_left_alone(tmp_path: Path, where: str) -> None:
    """Two runs told the same folder: the second is refused, and the first loses nothing; nor does a server that goes
    on when its parent was killed."""
    folder = tmp_path / where
    folder.mkdir(exist_ok=True)
    (folder / "serve.toml").touch()
    (folder / status.NAME).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with status.claimed(folder), pytest.raises(ConfigError, match=f"a run is under way in {folder} .process"):
        devices(tmp_path).run()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    """--out may name a file."""
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        devices(tmp_path / "out").run()


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_terminal_that_is_gone_ends_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The one that passes on what the servers say would take all of them with it."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, "gone")

    both = devices(tmp_path)
    child = both._children[0]
    child.folder.mkdir()
    (child.folder / "beadwork.log").write_text("a line\n")
    child.process = object()  # type: ignore[assignment]
    monkeypatch.setattr(sys, "stderr", Gone())
    child.say()
    both._log("a sentence")


def test_last_frames_of_an_earlier_run_stay(tmp_path: Path) -> None:
    """What two runs left behind may both be wanted."""
    frame = Frame(np.array([8]), np.zeros((1, 3)), np.eye(3))
    for step in (3, 7):
        save_last_frames([LastFrames("here", step, [frame], None)], tmp_path)
    assert "step=7" in (tmp_path / NAME).read_text()
    assert "step=3" in (tmp_path / f"{NAME}.1").read_text()
