"""A disk that is full, a queue that cannot be written, a clock that is set back: nothing hangs, nothing is lost."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.cli import main
from beadwork.config import SelectionSettings
from beadwork.errors import QueueError
from beadwork.harvest import keeper, writer
from beadwork.harvest.queue import Queue
from beadwork.harvest.writer import QueueWriter
from beadwork.log import taken_apart
from beadwork.observe import last, record
from support.kept_frames import make_kept

#: making the models is part of the first test's time, and a busy machine takes its own
pytestmark = pytest.mark.timeout(1200)
#: seconds for a whole run, on a machine that has other things to do
LONG = 500.0
Say = Callable[[str], None]
#: keeps every bead of every step
KEEP_ALL = ("--queue", "q.db", "--keep-force", "0", "--cooldown", "0", "--keep-most", "10000", "--distance", "1e-9")


def sentence(log: str) -> str:
    """The last thing that beadwork said of itself, without this machine's paths."""
    lines = [taken_apart(line)[1] for line in re.split(r"[\r\n]", log)]
    said = [line for line in lines if line.startswith("beadwork: ")]
    return re.sub(r"/\S+/", "…/", said[-1].removeprefix("beadwork: "))


def frames_kept(run: Any) -> int:
    """Reported by the run, after holding the queue against it: as many rows, each whole, and none twice."""
    reported = int(json.loads((run.folder / "summary.json").read_text())["frames_kept"])
    assert whole_rows(run.folder / "q.db") == reported
    return reported


def whole_rows(path: Path) -> int:
    """Rows, after every table of ASE's was held against the others."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = ("systems", "keys", "text_key_values", "number_key_values", "species")
        counts = {t: connection.execute(f"SELECT COUNT(DISTINCT id) FROM {t}").fetchone()[0] for t in tables}
    assert len(set(counts.values())) == 1, counts
    rows = Queue(path).rows()
    assert len({row.fingerprint for row in rows}) == len(rows) == counts["systems"]
    return len(rows)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`beadwork run` in this process, with one of its files a link to /dev/full that stays where it is."""

    def call(run: Any, name: str, *options: object) -> tuple[int, str]:
        (run.folder / name).symlink_to("/dev/full")
        for module in (record, last):
            monkeypatch.setattr(module, "rotate_file", lambda path: path)
        monkeypatch.chdir(run.folder)
        code = main(["run", run.path.name, *(str(option) for option in options), "--engine", "torchscript"])
        return code, capfd.readouterr().err

    return call


@pytest.mark.slow
@pytest.mark.parametrize(("name", "done"), [("beadwork.out", False), ("summary.json", True)])
@pytest.mark.fault("no room for {name}", "{name} is a link to /dev/full; beadwork run")
def test_no_room_from_the_start(ipi, models, full, fault: Say, tmp_path: Path, name, done) -> None:
    """Exit code 12 and a sentence with the file: before i-PI is started, or after a run that is otherwise done."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4)], steps=3).write()
    code, log = full(run, name, "--baseline", models.baseline)
    assert code == 12
    said = sentence(log)
    assert name in said
    assert "No space left" in said
    assert (run.folder / "run.out").exists() == done
    fault(f"exit code 12: '{said}'; i-PI {'had done its 3 steps' if done else 'was not started'}")


@pytest.mark.slow
@pytest.mark.fault("no room for the last frames", "last-frames.extxyz is a link to /dev/full, and a mark is passed")
def test_no_room_for_last_words(ipi, models, full, fault: Say, tmp_path: Path) -> None:
    """What ended the run is what it ends with; that the frames are lost is said."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4)], steps=9).write()
    code, log = full(run, "last-frames.extxyz", "--baseline", models.baseline, "--mark-force", "1e-6")
    assert code == 11
    assert "are lost: cannot write" in log
    fault(f"exit code 11 as for the mark; '{re.search(r'frames that.*are lost: cannot write', log)[0]} …'")


@pytest.mark.slow
@pytest.mark.fault("the disk is full in mid-run", "ulimit -f 4: no file of the server's may grow over 4 kB; real i-PI")
def test_disk_full_in_mid_run(ipi, models, start, fault: Say, tmp_path: Path) -> None:
    """Exit code 12, i-PI is stopped and writes its RESTART; the last frames find no room either, and that is said."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-2)], steps=2000).write()
    process = start.ipi(run)
    command = [sys.executable, "-m", "beadwork.cli", "serve", run.path.name, "--baseline", models.baseline]
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *command, "--engine", "torchscript"]
    server = start("beadwork", *limited, cwd=run.folder)
    assert server.wait(LONG) == 12
    log = start.log(server)
    process.wait(LONG)
    assert "Traceback" not in log
    steps = int(run.properties()["step"][-1])
    assert 5 < steps < 2000
    assert (run.folder / "RESTART").exists()
    said = sentence(log)
    assert "4 frames that were answered last are lost" in log
    assert not (run.folder / "last-frames.extxyz").exists()  # torn, it would be worse than none
    fault(f"exit code 12 after {steps} steps: '{said}'; i-PI stopped and wrote its RESTART; the lost frames are said")


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """SQLite's own limit on pages stands for the disk: from now on the queue cannot grow."""
    connect = sqlite3.connect
    pages = path.stat().st_size // 4096

    def limited(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    sqlite3.connect = limited  # type: ignore[assignment]
    try:
        yield
    finally:
        sqlite3.connect = connect


@pytest.mark.slow
@pytest.mark.fault("the queue's disk is full", "SQLite's max_page_count, set once frames are in; real i-PI")
def test_a_full_disk_under_the_queue_stops_ipi_in_the_end(
    ipi, models, start, serve, fault: Say, tmp_path: Path, monkeypatch, capfd
) -> None:
    """It is told at once; after a while i-PI is stopped with exit code 12; what was reported is there."""
    monkeypatch.setattr(keeper, "DISK_FULL_SECONDS", 1.0)
    close = QueueWriter.close
    monkeypatch.setattr(QueueWriter, "close", lambda self, timeout=2.0: close(self, timeout))
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-2)], steps=5000).write()
    process = start.ipi(run)
    path, disk = run.folder / "q.db", []
    settle = QueueWriter._complete

    def fill(self: QueueWriter, batch: Any, ids: Any) -> None:
        settle(self, batch, ids)
        if not disk and len(Queue(path)) >= 20:
            disk.append(small_disk(path))
            disk[0].__enter__()

    monkeypatch.setattr(QueueWriter, "_complete", fill)
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "native", *KEEP_ALL]
    try:
        assert serve(run, *options) == 12
    finally:
        disk[0].__exit__(None, None, None)
    process.wait(LONG)
    log = capfd.readouterr().err
    assert "frames wait in memory" in log
    assert run.properties()["step"][-1] < 5000
    kept = frames_kept(run)
    assert kept >= 20
    fault(f"exit code 12: '{sentence(log)[:200]}'; {kept} frames reported, {kept} in the queue; i-PI was stopped")


@pytest.mark.slow
@pytest.mark.fault("another process holds the queue when a run begins", "BEGIN EXCLUSIVE by another connection")
def test_queue_locked_at_the_start(ipi, models, serve, capfd, fault: Say, tmp_path: Path) -> None:
    """Exit code 9 with a sentence, after the queue's patience of 20 s."""
    run = ipi.Input(tmp_path / "run").write()
    Queue(run.folder / "q.db", create=True)
    with closing(sqlite3.connect(run.folder / "q.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        begin = time.monotonic()
        options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "torchscript", *KEEP_ALL]
        assert serve(run, *options) == 9
    said = sentence(capfd.readouterr().err)
    assert "another process has held it" in said
    fault(f"exit code 9 after {time.monotonic() - begin:.0f} s: '{said}'")


@pytest.mark.slow
@pytest.mark.fault("another process holds the queue for a while", "BEGIN EXCLUSIVE for 25 s in mid-run; real i-PI")
def test_queue_locked_in_mid_run(ipi, models, start, fault: Say, tmp_path: Path) -> None:
    """The run goes on meanwhile, and no frame that was taken is lost."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=0.05)], steps=10**6).write()
    process = start.ipi(run)
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "native", *KEEP_ALL]
    server = start.beadwork("serve", run, *options, "--cooldown", 20)
    path, end = run.folder / "q.db", time.monotonic() + LONG
    while not path.exists() or not (run.folder / "run.out").exists() or len(Queue(path, create=True)) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN EXCLUSIVE")
        before = int(run.properties()["step"][-1])
        time.sleep(25)
        during = int(run.properties()["step"][-1])
        rows = other.execute("SELECT COUNT(*) FROM systems").fetchone()[0]
        other.execute("ROLLBACK")
    assert during > before
    while len(Queue(path)) <= rows:
        assert time.monotonic() < end
        time.sleep(0.1)
    (run.folder / "EXIT").touch()
    assert server.wait(LONG) == 0
    assert process.wait(LONG) == 0
    kept = frames_kept(run)
    dropped = json.loads((run.folder / "summary.json").read_text())["frames_dropped"]
    assert dropped == 0
    fault(f"{during - before} steps were done meanwhile; exit code 0; {kept} frames reported, {kept} in the queue")


@pytest.mark.fault("a queue that may only be read", "mode 444, opened by a user who is not root")
def test_read_only_queue(fault: Say, tmp_path: Path) -> None:
    """It is refused when the run begins, not found out weeks later; nothing changes in it."""
    path = tmp_path / "q.db"
    Queue(path, create=True).add(make_kept(0))
    path.chmod(0o444)
    top = Path(tempfile.gettempdir())
    folders = [folder for folder in (tmp_path, *tmp_path.parents) if top in folder.parents]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:  # whom no mode stops
        os.seteuid(65534)
    try:
        with pytest.raises(QueueError, match="readonly") as error:
            keeper.Keeper(SelectionSettings(queue=str(path)), 5.0, "f" * 64, watch=lambda event: None)
    finally:
        if root:
            os.seteuid(0)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)
    assert whole_rows(path) == 1
    fault(f"exit code {error.value.exit_code} before i-PI is asked: '{re.sub(r'/[^ ]+/', '…/', str(error.value))}'")


class Failing:
    """Connections to SQLite of which the n-th operation fails: once, or it and every one after it."""

    def __init__(self, nth: int, forever: bool) -> None:
        self.nth, self.forever, self.count, self.failed = nth, forever, 0, 0
        outer = self

        class Cursor(sqlite3.Cursor):
            def execute(self, *args: Any) -> Any:
                outer.step()
                return super().execute(*args)

            def executemany(self, *args: Any) -> Any:
                outer.step()
                return super().executemany(*args)

        class Connection(sqlite3.Connection):
            def cursor(self, *args: Any) -> Any:
                return super().cursor(Cursor)

            def execute(self, *args: Any) -> Any:
                return self.cursor().execute(*args)

            def commit(self) -> None:
                if self.in_transaction:  # else there is nothing that could fail; ASE commits again after us
                    outer.step()
                super().commit()

        self.connection = Connection

    def step(self) -> None:
        self.count += 1
        if self.count == self.nth or (self.forever and self.count > self.nth):
            self.failed += 1
            raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize(
    ("forever", "which"),
    [(False, "that one alone"), pytest.param(True, "it and all after it", marks=pytest.mark.slow)],
)
@pytest.mark.fault(
    "a queue write fails at its n-th operation",
    "SQLite's connection raises 'disk I/O error', for every n from the first statement to the last commit: {which}",
)
def test_every_operation_fails(fault: Say, tmp_path: Path, monkeypatch, forever, which) -> None:
    """For every n: nothing is half written, what was reported is there, and once the disk works again all is there."""
    monkeypatch.setattr(writer, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(writer, "_LONGEST_PAUSE_SECONDS", 0.002)
    connect = sqlite3.connect
    empty = tmp_path / "empty.db"
    Queue(empty, create=True)
    frames = [make_kept(seed) for seed in range(3)]
    nth, faults = 0, 0
    while True:
        nth += 1
        path = tmp_path / f"{nth}.db"
        path.write_bytes(empty.read_bytes())
        queue = Queue(path)
        failing, reported = Failing(nth, forever), []

        def broken(*args: Any, factory: Any = failing.connection, **kwargs: Any) -> Any:
            return connect(*args, factory=factory, **kwargs)

        monkeypatch.setattr(sqlite3, "connect", broken)
        harvest = QueueWriter(queue, on_kept=lambda id, kept, told=reported: told.append(kept.evaluation))
        taken = [harvest.offer(kept) for kept in frames]
        while forever and not failing.failed and harvest.pending:
            time.sleep(0.001)
        stored = harvest.close(0.05 if forever else 60)
        harvest._thread.join()
        monkeypatch.setattr(sqlite3, "connect", connect)
        assert taken == [True] * 3
        assert sorted(row.kept.evaluation for row in queue.rows()) == sorted(reported)
        assert whole_rows(path) == len(reported)
        assert stored == (len(reported) == 3)
        assert stored or forever
        if failing.failed == 0:
            break
        faults += 1
        path.unlink()
    assert faults > 20
    after = (
        "once the writer was closed, none was reported that is not there" if forever else "the next attempt stored all"
    )
    fault(f"{faults} places to fail: frames reported = frames present in each, no row torn or twice; {after}")


@pytest.mark.slow
@pytest.mark.fault("two servers on one queue", "two i-PIs that do the same, with two servers that keep every frame")
def test_two_servers_share_a_queue_without_loss(ipi, models, start, fault: Say, tmp_path: Path) -> None:
    """All that either reported is there, once; what both found is kept by one of them."""
    runs, servers, processes = [], [], []
    path = tmp_path / "q.db"
    Queue(path, create=True)
    for name in ("one", "other"):
        # the same start and the same seed, so every frame is found by both
        run = ipi.Input(tmp_path / name, [ipi.Forcefield(batch=4, latency=1e-2)], steps=25).write()
        processes.append(start.ipi(run))
        options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "native", *KEEP_ALL]
        servers.append(start.beadwork("serve", run, *options, "--queue", path))
        runs.append(run)
    assert [server.wait(LONG) for server in servers] == [0, 0]
    assert [process.wait(LONG) for process in processes] == [0, 0]
    summaries = [json.loads((run.folder / "summary.json").read_text()) for run in runs]
    # both have seen them all: four beads in one place, and then 25 times four
    assert [summary["structures_evaluated"] for summary in summaries] == [100, 100]
    assert [summary["frames_dropped"] for summary in summaries] == [0, 0]
    kept = [summary["frames_kept"] for summary in summaries]
    rows = whole_rows(path)
    assert rows == sum(kept) == 101
    fault(
        f"both ended with 0; {kept[0]} and {kept[1]} frames reported, of 101 that both have found; {rows} rows, each "
        "whole and once"
    )


@pytest.mark.slow
@pytest.mark.fault(
    "the clock is set back in mid-run", "time.time of the server goes back a day at every call; real i-PI"
)
def test_clock_goes_back(ipi, models, start, serve, fault: Say, tmp_path: Path, monkeypatch) -> None:
    """Only the monotonic clock decides anything: the same run, and its frames."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-2)], steps=15).write()
    process = start.ipi(run)
    now = [time.time()]

    def back() -> float:
        now[0] -= 86400.0
        return now[0]

    monkeypatch.setattr(time, "time", back)
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "native", *KEEP_ALL]
    code = serve(run, *options)
    monkeypatch.undo()
    assert code == 0
    assert process.wait(LONG) == 0
    kept = frames_kept(run)
    assert kept >= 15 * 4
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["steps"] == 15
    assert 0 < summary["seconds_total"] < LONG
    fault(f"exit code 0, 15 steps, {kept} frames reported and in the queue, {summary['seconds_total']:.1f} s counted")


@pytest.mark.fault(
    "the clock is set back while a frame is being labelled", "time.time goes back an hour between claims"
)
def test_lease_and_the_clock(fault: Say, tmp_path: Path, monkeypatch) -> None:
    """Leases are times of day, which several hosts share: set back, one lasts longer, and no frame is lost or twice."""
    queue = Queue(tmp_path / "q.db", create=True)
    queue.add_all([make_kept(0), make_kept(1)])
    clock = [1e9]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    first = queue.claim("alive", 600)
    second = queue.claim("dead", 600)
    assert first is not None
    assert second is not None
    clock[0] -= 3600
    assert queue.claim("third", 600) is None
    queue.finish(first.id, "alive", {"energy": -1.0})
    clock[0] += 3600 + 601
    again = queue.claim("third", 600)
    assert again is not None
    assert again.id == second.id
    with pytest.raises(QueueError, match="claimed by third"):
        queue.finish(second.id, "dead", {"energy": -2.0})
    queue.finish(again.id, "third", {"energy": -3.0})
    assert [row.label["energy"] for row in queue.rows(status="labelled") if row.label] == [-1.0, -3.0]
    assert np.isfinite([row.kept.time for row in queue.rows()]).all()
    fault("the living worker's label was taken; the dead one's frame was free again when its time of day had come")
