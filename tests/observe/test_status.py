"""`beadwork status`, against processes that are really there, really gone, or somebody else's by now."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from beadwork.cli import main
from beadwork.errors import ConfigError
from beadwork.events import Evaluated, Event, Lost, Note, Waiting
from beadwork.observe import status as module
from beadwork.observe.pace import Pace
from beadwork.observe.status import ENDED, HANGING, RUNNING, StatusFile, format_status, read_status
from beadwork.processes import birth
from support.json_forms import checked as held


def event(step: int) -> Evaluated:
    """One evaluation."""
    return Evaluated("a", step, 4, -1.0, 0.01, 0.02, {"idle": 0.1, "model": 0.3})


def facts() -> dict[str, Any]:
    """What answers."""
    return {"engines": ["baseline (native, float64)"], "committee": "sha256:abc"}


@pytest.fixture
def status(tmp_path: Path) -> StatusFile:
    """Of this process, which has answered three steps of ten."""
    pace = Pace(time_step=0.5)
    status = StatusFile(tmp_path, pace, 10, facts)
    status._written = -1e9
    for step in range(4):
        for watcher in (pace, status):
            watcher(event(step))
        status._written = -1e9
    return status


def changed(status: StatusFile, **values: object) -> dict[str, Any]:
    """What the file says, with other values."""
    return {**read_status(status.path.parent), **values}


def test_a_running_process_is_running(status: StatusFile, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that a person looks for stands there, and a script gets 0."""
    assert main(["status", str(status.path.parent)]) == RUNNING == 0
    said = capsys.readouterr().out
    for part in (
        f"running: process {os.getpid()} on {platform.node()}, since 2",
        "step 3 of 10",
        "ns/day",
        "spread 0.02 eV/Å; frames kept: 0",
        "i-PI 25 %, models 75 %",
        "last result 0 s ago",
        "engines: baseline (native, float64)",
        "committee: sha256:abc",
    ):
        assert part in said


def test_a_run_as_an_object(status: StatusFile, capsys: pytest.CaptureFixture[str]) -> None:
    """What the text says, in numbers and a state that is a word of its own; the code is that of the text."""
    folder = str(status.path.parent)
    assert main(["status", folder, "--json"]) == RUNNING
    found = held(capsys.readouterr().out, "status")
    (server,) = found["servers"]
    assert (found["exit_code"], server["state"], server["exit_code"]) == (0, "running", None)
    assert (server["step"], server["total_steps"], server["force_spread"]) == (3, 10, 0.02)
    assert server["seconds_left"] == pytest.approx(7 * server["seconds_per_step"])
    assert server["shares"]["models"] == pytest.approx(0.75)
    for state, values in (
        ("waiting", {"state": "waiting", "why": "for i-PI"}),
        ("hangs", {"host": "elsewhere", "updated": time.time() - 3600}),
        ("dead", {"birth": "another 1"}),
    ):
        data = changed(status, **values)
        assert module.observed(data).state == state
        assert module.observed(data).told == format_status(data)[0]
    status.close(6, "the model answered NaN")
    assert main(["status", folder, "--json"]) == ENDED
    (server,) = held(capsys.readouterr().out, "status")["servers"]
    assert (server["state"], server["exit_code"], server["why"]) == ("ended", 6, "the model answered NaN")


def test_watching_ends_with_the_run(
    status: StatusFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks again after so many seconds, and ends with the code of an ended run; with --json an object a line; in a
    file no sign that is for terminals."""
    folder = str(status.path.parent)
    for words in ([], ["--json"]):
        status._state = {"state": "serving", "why": ""}
        status._write()
        slept: list[float] = []
        monkeypatch.setattr(
            time, "sleep", lambda s, slept=slept: (slept.append(s), len(slept) == 2 and status.close(0))
        )
        assert main(["status", folder, "--watch", "7", *words]) == ENDED
        assert slept == [7, 7]
        out = capsys.readouterr().out
        assert "\033" not in out
        if words:
            states = [held(line, "status")["servers"][0]["state"] for line in out.splitlines()]
            assert states == ["running", "running", "ended"]
        else:
            assert (out.count("running: process"), out.count("with exit code 0")) == (2, 1)


def test_the_file_is_whole_and_its_users_own(status: StatusFile) -> None:
    """Mode 600, nothing else left beside it, and a link planted under the temporary name is not followed."""
    folder = status.path.parent
    victim = folder / "victim"
    victim.write_text("precious")
    (folder / f".status.json.{os.getpid()}").symlink_to(victim)
    status.close(0)
    assert stat.S_IMODE(status.path.stat().st_mode) == 0o600
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in folder.iterdir()) == ["status.json", "victim"]


def test_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of steps a second are thousands of events, and two or three files."""
    writes = []
    replace = os.replace
    monkeypatch.setattr(module.os, "replace", lambda *names: (writes.append(names), replace(*names)))
    status = StatusFile(tmp_path, Pace(), 10, facts)
    begin = time.monotonic()
    while time.monotonic() < begin + 1.3:
        status(event(1))
    assert len(writes) == 2  # at the start, and one second later


def test_what_the_spread_speaks_of_stands_beside_it(status: StatusFile) -> None:
    """Of a spread of Δ alone it is said, once; of others, where there is none, and by older files it is not."""
    sentence = "the baseline's error against its own reference is not in it"
    assert format_status(changed(status, spread_of_delta_alone=True))[0].count(sentence) == 1
    for values in ({}, {"spread_of_delta_alone": False}, {"spread_of_delta_alone": True, "force_spread": None}):
        assert sentence not in format_status(changed(status, **values))[0]


def test_novelty_stands_beside_the_spread(status: StatusFile) -> None:
    """With the part that it is new to; a file of an older beadwork, which has no novelty, is still read."""
    assert "novelty" not in format_status(changed(status))[0]
    said, _ = format_status(changed(status, novelty={"baseline": 1.1, "delta": 2.5}))
    assert "novelty 2.50 (Δ), spread 0.02 eV/Å" in said
    older = {
        key: value
        for key, value in changed(status).items()
        if key not in ("novelty", "new_structures", "new_atoms", "frames_kept_for", "spread_of_delta_alone")
    }
    assert format_status(older) == format_status(changed(status))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_dead(status: StatusFile, how: int) -> None:
    """No process of that number any more, or a zombie: said in plain words, and no success for a script."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    data = changed(status, pid=process.pid, birth=birth(process.pid))
    assert format_status(data)[1] == RUNNING
    process.send_signal(how)
    end = time.monotonic() + 10
    while format_status(data)[1] == RUNNING:  # it stays a zombie until it is waited for
        assert time.monotonic() < end
    said, code = format_status(data)
    process.wait()
    assert code == ENDED != 0
    assert "ended without writing its end" in said
    assert format_status(data)[1] == ENDED


def test_a_number_that_was_given_out_again_is_dead(status: StatusFile) -> None:
    """The pid lives, but it began at another time: that is another process."""
    data = changed(status)
    boot, ticks = data["birth"].split()
    assert format_status(data | {"birth": f"{boot} {int(ticks) - 1}"})[1] == ENDED
    assert format_status(data | {"birth": f"another-boot {ticks}"})[1] == ENDED


def test_a_silent_one_hangs(status: StatusFile) -> None:
    """Connected, alive and without an answer for a minute and twenty of its own steps; a slow model has longer."""
    data = changed(status, seconds_per_step=1.0)
    now = data["updated_monotonic"]
    assert format_status(data | {"updated_monotonic": now - 55})[1] == RUNNING
    said, code = format_status(data | {"updated_monotonic": now - 300})
    assert code == HANGING not in (RUNNING, ENDED)
    assert "has sent no result for 5 min" in said
    assert format_status(data | {"updated_monotonic": now - 300, "seconds_per_step": 60.0})[1] == RUNNING


def test_slow_steps_do_not_hang_before_their_pace_is_known(status: StatusFile) -> None:
    """Steps of two minutes, 70 s after the first: a watchdog must not end that run."""
    slow = changed(status, seconds_per_step=None, seconds_of_the_last=120.0, answered_before_update=70.0)
    assert format_status(slow)[1] == RUNNING
    assert format_status({**slow, "seconds_of_the_last": 0.3})[1] == HANGING


def test_a_clock_that_was_set_changes_nothing(status: StatusFile) -> None:
    """Ages are told by the clock that cannot be set."""
    for shift in (-1e6, 1e6):
        data = changed(status)
        said, code = format_status(data | {"updated": data["updated"] + shift})
        assert code == RUNNING
        assert "last result 0 s ago" in said


def test_a_waiting_one_waits_and_does_not_hang(status: StatusFile) -> None:
    """Without i-PI no answer is due, however long that lasts; the state is written at once."""
    status(Lost("/tmp/ipi_x", "i-PI hung up", 1))
    assert read_status(status.path.parent)["state"] == "serving"  # another connection is still there
    status(Lost("/tmp/ipi_x", "i-PI hung up", 0))
    data = changed(status)
    said, code = format_status(data | {"updated_monotonic": data["updated_monotonic"] - 3600})
    assert code == RUNNING
    assert "waits for i-PI at /tmp/ipi_x (i-PI hung up)" in said
    assert "last result 60 min ago" in said


def test_an_end_is_told_with_its_reason(status: StatusFile) -> None:
    """Exit code and sentence, after which the process may well be gone."""
    status.close(6, "the model answered NaN")
    said, code = format_status(changed(status, pid=2**22 + 5))
    assert code == ENDED
    assert "with exit code 6: the model answered NaN" in said


def test_another_machines_run_is_judged_by_its_word(status: StatusFile) -> None:
    """Over a shared folder the process cannot be seen: its last word counts, by the clock on the wall."""
    data = changed(status, host="elsewhere", pid=1)
    assert format_status(data)[1] == RUNNING
    said, code = format_status(data | {"updated": time.time() - 3600})
    assert code == HANGING
    assert "as far as can be seen from" in said


def test_no_run_is_a_config_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a status, and a file that is none: one sentence and code 2."""
    assert main(["status", str(tmp_path)]) == ConfigError.exit_code
    assert "no run has begun there" in capsys.readouterr().err
    for text in ("{", "[1]", '{"format": 99}', '{"format": 1}', '{"format": 1, "state": "ended", "pid": "x"}'):
        (tmp_path / "status.json").write_text(text)
        assert main(["status", str(tmp_path)]) == ConfigError.exit_code
        assert "Traceback" not in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    """A full or read-only disk costs the status, not the run."""
    told: list[Event] = []
    folder = tmp_path / "gone"
    status = StatusFile(folder, Pace(), 10, facts, told.append)
    shutil.rmtree(folder)
    folder.touch()  # what was a folder is a file now
    status(event(1))
    status.close(0)
    assert [isinstance(note, Note) and "cannot be written" in note.text for note in told] == [True]


def test_what_is_written_is_plain_json(status: StatusFile) -> None:
    """Other programs may read it: no NaN, and every key of the pace."""
    data = json.loads(status.path.read_text(), parse_constant=pytest.fail)
    assert set(Pace().facts()) <= set(data)


def test_frames_that_wait_are_told_from_another_shell(status: StatusFile) -> None:
    """As long as the queue cannot be written, with how many and why; not longer."""
    status(Waiting(3, "the queue q.db: database is locked"))
    assert "3 frames wait in memory to be kept: the queue q.db: database is locked" in format_status(changed(status))[0]
    status(Waiting(4, "the queue q.db: database is locked"))  # within the same second
    assert "4 frames wait" in format_status(changed(status))[0]
    status(Waiting(0, ""))
    assert "wait" not in format_status(changed(status))[0]


def test_frames_that_a_killed_run_held_are_lost(status: StatusFile) -> None:
    """They were in its memory alone: how many are told, and not that they wait."""
    status(Waiting(3, "the queue q.db: database is locked"))
    said, code = format_status(changed(status, birth="another"))
    assert code == ENDED
    assert "3 frames that waited in memory to be kept are lost: the queue q.db: database is locked" in said


def test_a_full_disk_leaves_the_last_word_and_no_temporary_file(
    status: StatusFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing new can be made there: that the run has ended is written where the file says that it serves."""
    fsopen = os.open

    def full(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_EXCL:
            os.close(fsopen(path, flags, *more))  # there is room for a name, as often, but not for what is in it
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsopen(path, flags, *more)

    monkeypatch.setattr(os, "open", full)
    status.close(12, "the disk is full")
    monkeypatch.undo()
    assert [path.name for path in status.path.parent.iterdir()] == ["status.json"]
    said, code = format_status(changed(status))
    assert code == ENDED
    assert "with exit code 12: the disk is full" in said
