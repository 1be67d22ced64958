"""The queue: what goes in comes out, once; claims belong to one worker; and whatever is wrong is said in a sentence."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.build
import ase.db
import numpy as np
import pytest

from beadwork.cli import main
from beadwork.errors import QueueError
from beadwork.frame import Frame
from beadwork.harvest.distance import signature
from beadwork.harvest.queue import DiskFullError, Queue
from beadwork.harvest.row import KeptFrame, label_digest, to_ase
from beadwork.potential.bundle import committee_hash

Make = Callable[[int], KeptFrame]


def test_frame_comes_back_as_it_went_in(queue: Queue, kept: Make) -> None:
    """Structure and all that was said of it, to the last bit."""
    for seed in range(6):
        before = kept(seed)
        id = queue.add(before)
        assert id is not None
        row = queue.get(id)
        after = row.kept
        assert (row.id, row.status, row.attempts, row.worker) == (id, "waiting", 0, None)
        assert row.version.startswith("beadwork ")
        for name in ("evaluation", "energy_spread", "models", "simulation", "step", "time", "committee"):
            assert getattr(after, name) == getattr(before, name), name
        assert (after.frame.pbc, after.frame.bead) == (before.frame.pbc, before.frame.bead)
        for name in ("numbers", "positions", "cell"):
            np.testing.assert_array_equal(getattr(after.frame, name), getattr(before.frame, name))
        np.testing.assert_array_equal(after.force_spread, before.force_spread)
        np.testing.assert_array_equal(after.member_energies, before.member_energies)


def test_ase_reads_it_without_us(queue: Queue, path: Path, kept: Make) -> None:
    """ase.db alone finds the rows by our keys, and SQLite finds nothing wrong with the file."""
    queue.add_all([kept(seed) for seed in range(4)])
    db = ase.db.connect(path, use_lock_file=False)
    with db:
        assert db.count(status="waiting") == 4
        row = db.get("bead=3")
    assert row.toatoms().get_chemical_formula() == "H4O2"
    assert row.force_spread_max == kept(3).force_spread.max()
    assert row.simulation == "sha256:" + "1e5".ljust(64, "0")
    assert row.committee == committee_hash(["a" * 64, "b" * 64, "1" * 64])  # with or without their prefix
    np.testing.assert_array_equal(row.data["force_spread"], kept(3).force_spread)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_committees_that_differ_in_weights_alone(queue: Queue, kept: Make) -> None:
    """They answer otherwise, so they have other hashes, in a row that is read again too; the scale of weights is no
    part of it, and equal ones are as none."""
    plain, equal, one, two = (
        replace(kept(seed), weights=weights)
        for seed, weights in enumerate([(), (0.5, 0.5), (0.25, 0.75), (0.75, 0.25)])
    )
    assert plain.committee == equal.committee
    assert len({plain.committee, one.committee, two.committee}) == 3
    assert one.committee == committee_hash(one.models, [2.0, 6.0])
    for before in (plain, one):
        row = queue.get(queue.add(before) or 0)
        assert (row.kept.weights, row.kept.committee) == (before.weights, before.committee)


def test_cluster_and_spreads_that_are_not_finite(queue: Queue) -> None:
    """No cell, a mixed periodicity, and the NaN of a frame kept because a model answered it."""
    atoms = ase.build.molecule("H2O")
    numbers, nothing = atoms.numbers, np.zeros((3, 3))
    nan = np.array([np.nan, 0.0, np.inf])
    cluster = KeptFrame(
        Frame(numbers, atoms.positions, nothing, (False,) * 3), 1, np.nan, nan, nan[:2], ("a" * 64,), "b"
    )
    slab = KeptFrame(
        Frame(numbers, atoms.positions * 1.1, np.eye(3) * 5, (True, False, True)), 2, 0.0, nan, nan, (), "b"
    )
    assert None not in queue.add_all([cluster, slab])
    first, second = (row.kept for row in queue.rows())
    assert first.frame.pbc == (False,) * 3
    assert not first.frame.cell.any()
    assert np.isnan(first.energy_spread)
    np.testing.assert_array_equal(first.force_spread, nan)
    assert second.frame.pbc == (True, False, True)


def test_rows_are_found_by_status(queue: Queue, kept: Make) -> None:
    """All of them, or those that wait or are claimed; oldest first."""
    queue.add_all([kept(seed) for seed in range(3)])
    assert [row.id for row in queue.rows()] == [1, 2, 3]
    assert queue.claim("w", 60) is not None
    assert [row.id for row in queue.rows(status="waiting")] == [2, 3]
    assert [row.id for row in queue.rows(status="claimed")] == [1]


def test_no_frame_is_stored_twice(queue: Queue, path: Path, kept: Make) -> None:
    """Not in one call, not in another, not from another server, and not permuted, moved and wrapped."""
    one = kept(0)
    assert queue.add_all([one, one]) == [1, None]
    frame = one.frame
    order = [3, 5, 1, 0, 2, 4]
    moved = Frame(frame.numbers[order], frame.positions[order] + frame.cell[1] + 0.3, frame.cell, bead=3)
    assert Queue(path).add(KeptFrame(moved, 9, 0.0, np.zeros(6), np.zeros(4), ("e" * 64,), "f" * 64)) is None
    assert queue.add(kept(1)) is not None
    assert len(queue) == 2


def test_charge_and_spin_come_back_and_make_another_frame(queue: Queue, path: Path, kept: Make) -> None:
    """The same atoms with other electrons want a label of their own: stored beside each other, each as it was, and a
    row whose charge the disk has changed is set aside."""
    told = [(None, None), (0, None), (1, None), (1, 0), (1, 2), (-1, 0)]
    one = kept(0)
    frames = [replace(one, frame=replace(one.frame, charge=charge, spin=spin)) for charge, spin in told]
    assert queue.add_all(frames) == [1, 2, 3, 4, 5, 6]
    assert queue.add_all(frames) == [None] * 6
    assert [(row.kept.frame.charge, row.kept.frame.spin) for row in queue.rows()] == told
    with ase.db.connect(path, use_lock_file=False) as db:
        assert [row.id for row in db.select(total_charge=1, unpaired_electrons=2)] == [5]
        db.update(5, total_charge=-1)
    said: list[str] = []
    assert 5 not in [row.id for row in Queue(path, report=said.append).rows()]
    assert "its content does not match its digest" in said[0]


def test_a_frame_without_charge_is_stored_as_ever() -> None:
    """Rows of an older beadwork are held against the digest and the fingerprint that it wrote."""
    positions = np.array([[0, 0, 0.125], [0, 0.75, -0.5], [0, -0.75, -0.5]])
    frame = Frame(np.array([8, 1, 1]), positions, np.zeros((3, 3)), (False,) * 3, 2)
    spread, energies = np.array([0.5, 0.25, 0.125]), np.array([1.0, 2.0])
    _, keys, data = to_ase(KeptFrame(frame, 7, 0.25, spread, energies, ("a" * 64,), "b" * 64, 70, 1e9), "waiting")
    assert keys["fingerprint"] == "sha256:724613fb3d8b9362ec29df0a9f0061733182345e4b609eb6f2dfc941cd863d15"
    assert data["digest"] == "sha256:c26978872c437a440754ca085744a54d13deb263d9d2875c8fcba3147fc3dbec"


def test_database_itself_refuses_a_second_fingerprint(queue: Queue, path: Path, kept: Make) -> None:
    """Also a writer that does not ask first (ASE alone) cannot store a fingerprint twice."""
    queue.add(kept(0))
    mark = queue.get(1).fingerprint
    db = ase.db.connect(path, use_lock_file=False)
    with pytest.raises(sqlite3.IntegrityError), db:
        db.write(ase.build.molecule("H2"), fingerprint=mark)
    assert len(queue) == 1


def test_claim_is_for_one_worker_and_for_a_time(queue: Queue, kept: Make) -> None:
    """Oldest first, never to two workers, back when the lease is over, and the attempts are counted."""
    queue.add_all([kept(0), kept(1)])
    first, second = queue.claim("ann", 60), queue.claim("17", -1)  # a worker's name may read as a number
    assert first is not None
    assert second is not None
    assert (first.id, first.worker, first.attempts, first.status) == (1, "ann", 1, "claimed")
    assert first.expires == pytest.approx(time.time() + 60, abs=5)
    assert (second.id, second.worker) == (2, "17")
    again = queue.claim("cid", 60)  # the claim of worker 17 has expired
    assert again is not None
    assert (again.id, again.worker, again.attempts) == (2, "cid", 2)
    assert queue.claim("dan", 60) is None
    assert queue.claim("dan", 60, id=1) is None
    with pytest.raises(QueueError, match=r"row 2 .* claimed by cid, not claimed by 17"):
        queue.finish(2, "17", {"energy": 1.0})
    queue.release(2, "cid")
    back = queue.claim("dan", 60, id=2)
    assert back is not None
    assert back.attempts == 2  # what was released does not count


def test_label_and_failure(queue: Queue, kept: Make) -> None:
    """A label comes back as it was given; a failure waits again or is set aside, with its reason."""
    queue.add_all([kept(0), kept(1)])
    forces = np.random.default_rng(0).normal(size=(6, 3))
    queue.claim("ann", 60)
    queue.finish(1, "ann", {"energy": -76.1, "forces": forces, "code": "pyscf"})
    row = queue.get(1)
    assert row.status == "labelled"
    assert row.label is not None
    assert row.label["energy"] == -76.1
    np.testing.assert_array_equal(row.label["forces"], forces)
    np.testing.assert_array_equal(row.kept.force_spread, kept(0).force_spread)  # and nothing of the frame is lost

    for again, status in ((True, "waiting"), (False, "failed")):
        claimed = queue.claim("ann", 60)
        assert claimed is not None
        assert claimed.id == 2
        queue.fail(2, "ann", "no convergence", again=again)
        assert queue.get(2).status == status
    assert (queue.get(2).reason, queue.get(2).attempts) == ("no convergence", 2)
    assert queue.claim("ann", 60) is None
    for change in (
        lambda: queue.release(2, "ann"),
        lambda: queue.fail(1, "ann", "x", again=True),
        lambda: queue.finish(9, "ann", {}),
    ):
        with pytest.raises(QueueError, match="row"):
            change()
    assert [row.status for row in queue.rows()] == ["labelled", "failed"]


def test_two_processes_share_a_queue(path: Path, kept: Make) -> None:
    """Two processes that make the queue, write the same frames and claim them: each frame once, each claim once."""
    program = textwrap.dedent(
        """
        import sys
        from support.kept_frames import make_kept
        from beadwork.harvest.queue import Queue
        queue = Queue(sys.argv[1], create=True)
        stored = sum(queue.add(make_kept(seed)) is not None for seed in range(15))
        claimed = []
        while (row := queue.claim(sys.argv[2], 60)) is not None:
            claimed.append(row.id)
        print(stored, *claimed)
        """
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), name],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        for name in ("ann", "bob")
    ]
    said = [[int(word) for word in child.communicate(timeout=120)[0].split()] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(words[0] for words in said) == 15
    assert sorted(id for words in said for id in words[1:]) == [row.id for row in Queue(path).rows()]
    assert len(Queue(path)) == 15


def test_file_is_for_its_user_alone(path: Path) -> None:
    """Whatever the umask, nobody else reads the frames."""
    before = os.umask(0)
    try:
        Queue(path, create=True)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_not_a_queue(tmp_path: Path, kept: Make) -> None:
    """Missing, a directory, empty, not a database, a stranger's, ASE's own, a newer one: a sentence each, untouched."""

    def refused(path: Path, match: str, *, create: bool = True) -> None:
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(QueueError, match=match) as caught:
            Queue(path, create=create)
        assert path.name in str(caught.value)
        assert (path.read_bytes() if path.is_file() else None) == before

    refused(tmp_path / "none.db", "there is no queue", create=False)
    refused(tmp_path / "no" / "where" / "queue.db", "cannot make the queue")
    refused(tmp_path, "is a directory")
    (tmp_path / "empty.db").touch()
    refused(tmp_path / "empty.db", "is empty", create=False)
    (tmp_path / "text.db").write_text("not a database " * 100)
    refused(tmp_path / "text.db", "not a database; .* choose another path")
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    refused(tmp_path / "foreign.db", "something else")
    own = ase.db.connect(tmp_path / "own.db", use_lock_file=False)
    with own:
        own.write(ase.build.molecule("H2"))
    refused(tmp_path / "own.db", "did not make")
    Queue(tmp_path / "newer.db", create=True)
    newer = ase.db.connect(tmp_path / "newer.db", use_lock_file=False)
    with newer:
        newer.metadata = {"beadwork_queue": 99}
    refused(tmp_path / "newer.db", "newer beadwork")


def test_damaged_queue_is_said_so(queue: Queue, path: Path, kept: Make) -> None:
    """Pages overwritten with zeros: the sentence names the file, and no other exception comes out."""
    queue.add_all([kept(seed) for seed in range(30)])
    content = bytearray(path.read_bytes())
    content[4096 : len(content) // 2] = bytes(len(content) // 2 - 4096)
    path.write_bytes(content)
    with pytest.raises(QueueError, match=path.name):
        queue.rows()


def test_row_of_a_stranger_is_named(queue: Queue, path: Path, kept: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """A row that someone added with ASE alone is pointed out by its id, and hides no other."""
    db = ase.db.connect(path, use_lock_file=False)
    with db:
        db.write(ase.build.molecule("H2"))
    queue.add(kept(0))
    with pytest.raises(QueueError, match=r"row 1 .* beadwork did not write it"):
        queue.get(1)
    assert [row.id for row in queue.rows()] == [2]
    assert capsys.readouterr().err.count("row 1 of the queue") == 1


def test_locked_queue_is_said_so(path: Path, kept: Make) -> None:
    """A writer that holds the file for longer than our patience; afterwards all is well."""
    queue = Queue(path, create=True, patience=0.2)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(QueueError, match=r"locked; another process has held it for more than 0\.2 s"):
            queue.add(kept(0))
        other.execute("ROLLBACK")
    assert queue.add(kept(0)) == 1


@pytest.mark.skipif(os.name != "posix", reason="rights of files are POSIX's")
def test_read_only_queue(open_directory: Path, kept: Make) -> None:
    """Without the right to write, it can be listed, and adding says what to do; nothing changes."""
    path = open_directory / "queue.db"
    Queue(path, create=True).add(kept(0))
    path.chmod(0o444)
    root = os.geteuid() == 0
    if root:  # whom no mode stops: become somebody else for a moment
        os.seteuid(65534)
    try:
        queue = Queue(path)
        assert [row.kept.evaluation for row in queue.rows()] == [0]
        with pytest.raises(QueueError, match="readonly database; make the file and its directory writable"):
            queue.add(kept(1))
    finally:
        if root:
            os.seteuid(0)
    assert len(Queue(path)) == 1


def test_a_queue_that_may_not_be_read_is_refused(open_directory: Path, kept: Make) -> None:
    """A file that this user may not read at all."""
    path = open_directory / "queue.db"
    Queue(path, create=True)
    path.chmod(0o000)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(QueueError, match=r"unable to open .* read and write"):
            Queue(path)
    finally:
        if root:
            os.seteuid(0)


def test_full_disk_is_said_so(queue: Queue, path: Path, kept: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own limit on pages stands for the disk: the frames before are safe, and the batch is all or none."""
    queue.add_all([kept(seed) for seed in range(3)])
    connect = sqlite3.connect

    def on_a_small_disk(*args: object, **kwargs: object) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)  # type: ignore[call-overload]
        connection.execute(f"PRAGMA max_page_count = {path.stat().st_size // 4096}")
        return connection  # type: ignore[no-any-return]

    monkeypatch.setattr(sqlite3, "connect", on_a_small_disk)
    with pytest.raises(QueueError, match="full; make room on the disk"):
        queue.add_all([kept(seed) for seed in range(3, 40)])
    monkeypatch.undo()
    assert [row.kept.evaluation for row in queue.rows()] == [0, 1, 2]
    assert queue.add_all([kept(3)]) == [4]


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8, 12])
def test_failure_at_any_statement_undoes_the_batch(
    queue: Queue, path: Path, kept: Make, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """The n-th statement of a batch fails: none of its frames is in any of the tables, and the next try works."""
    queue.add(kept(0))
    connect = sqlite3.connect

    class Frail(sqlite3.Connection):
        left = 10**9

        def cursor(self, *args: object, **kwargs: object) -> sqlite3.Cursor:  # type: ignore[override]
            Frail.left -= 1
            if Frail.left <= 0:
                raise sqlite3.OperationalError("disk I/O error")
            return super().cursor()

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=Frail))
    Frail.left = stop
    with pytest.raises(DiskFullError, match="disk I/O error; the disk"):
        queue.add_all([kept(1), kept(2), kept(3), kept(4), kept(5), kept(6)])
    monkeypatch.undo()
    with closing(sqlite3.connect(path)) as connection:
        for table in ("systems", "keys", "text_key_values", "number_key_values", "species"):
            assert connection.execute(f"SELECT COUNT(DISTINCT id) FROM {table}").fetchone() == (1,), table
    assert len(queue.add_all([kept(1), kept(2)])) == len(queue) - 1 == 2


def test_the_name_of_a_queue_says_nothing_of_its_disk(tmp_path: Path, kept: Make) -> None:
    """A queue that is locked is no full disk, which ends a run, whatever its file is called."""
    queue = Queue(tmp_path / "No space left, disk is full.db", create=True, patience=0.1)
    with closing(sqlite3.connect(tmp_path / "No space left, disk is full.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueError, match=r"disk is full.* database is locked") as raised:
            queue.add(kept(0))
    assert type(raised.value) is QueueError


def test_failed_commit_leaves_no_lock(path: Path, kept: Make) -> None:
    """A reader in the way of the commit: the batch is undone, and the error, kept by someone, keeps no lock."""
    queue = Queue(path, create=True, patience=0.2)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM systems").fetchone()
        with pytest.raises(QueueError, match="locked") as caught:
            queue.add(kept(0))
        reader.execute("COMMIT")
        reader.execute("BEGIN EXCLUSIVE")  # nobody else holds anything
        reader.execute("ROLLBACK")
    assert caught.value.__traceback__ is not None
    assert queue.add(kept(0)) == 1


def test_creation_is_finished_by_the_next(path: Path, kept: Make) -> None:
    """A server killed while it made the queue (an empty file, or ASE's tables without our mark) leaves no trap."""
    path.touch()
    assert len(Queue(path, create=True)) == 0
    path.unlink()
    db = ase.db.connect(path, use_lock_file=False)
    with db:
        assert db.count() == 0
    queue = Queue(path, create=True)
    assert queue.add_all([kept(0), kept(0)]) == [1, None]


def test_other_databases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown scheme, and PostgreSQL without its packages: the sentence says what to install, not the password."""
    with pytest.raises(QueueError, match="give a path, or a postgresql:// URL") as caught:
        Queue("mysql://me:secret@host/db", create=True)
    assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(QueueError, match=r"pip install 'ase-db-backends[<>=.,\d]+' 'psycopg2-binary[<>=.,\d]+'"):
        Queue("postgresql://me:secret@host/db", create=True)


def test_kept_frame_must_fit_itself(kept: Make) -> None:
    """A force spread of another number of atoms is a mistake of the caller, found before the writer's thread."""
    with pytest.raises(ValueError, match=r"\(5,\) for 6 atoms"):
        KeptFrame(kept(0).frame, 0, 0.0, np.zeros(5), np.zeros(4), (), "a")


def test_fingerprint_is_that_of_the_structure(queue: Queue, kept: Make) -> None:
    """The key in the row is the fingerprint of the frame that comes back, so it can be checked at any time."""
    from beadwork.harvest.distance import fingerprint

    queue.add(kept(0))
    row = queue.get(1)
    assert row.fingerprint == fingerprint(signature(row.kept.frame))


def test_a_claim_is_renewed_by_its_worker_alone(queue: Queue, kept: Make) -> None:
    """From now for as long again; not by another, and not once the frame is labelled."""
    queue.add(kept(0))
    queue.claim("ann", 1)
    queue.renew(1, "ann", 600)
    assert queue.get(1).expires == pytest.approx(time.time() + 600, abs=5)
    with pytest.raises(QueueError, match="claimed by ann, not claimed by bob"):
        queue.renew(1, "bob", 600)
    queue.finish(1, "ann", {"energy": 1.0})
    with pytest.raises(QueueError, match="is labelled"):
        queue.renew(1, "ann", 600)


def test_what_was_set_aside_can_wait_again(queue: Queue, kept: Make) -> None:
    """Its attempts are forgotten; a frame that was not set aside stays what it is."""
    queue.add_all([kept(0), kept(1)])
    queue.claim("ann", 60, id=1)
    queue.fail(1, "ann", "no licence", again=False)
    queue.claim("ann", 60, id=2)
    for id in (1, 2):
        queue.retry(id)
    assert [(row.status, row.attempts) for row in queue.rows()] == [("waiting", 0), ("claimed", 1)]


def test_another_process_opens_the_same_queue(queue: Queue, kept: Make, monkeypatch: Any, tmp_path: Path) -> None:
    """By its url, wherever that process stands."""
    queue.add(kept(0))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(Queue(queue.url)) == 1


def damage(path: Path, old: bytes, new: bytes) -> None:
    """Put other bytes in place of those that stand there once."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def flipped(array: np.ndarray) -> tuple[bytes, bytes]:
    """The bytes of an array, and the same with one bit of its first number turned."""
    other = array.copy()
    other.view(np.uint8).flat[6] ^= 1
    return array.tobytes(), other.tobytes()


def test_a_row_that_the_disk_has_changed_is_set_aside(queue: Queue, path: Path, kept: Make) -> None:
    """One bit of a position, of a spread, of a label: that row is named, once, the others are read, nobody gets it to
    label, and `get` says what does not fit."""
    queue.add_all([kept(seed) for seed in range(6)])
    forces = np.random.default_rng(0).normal(size=(6, 3))
    assert queue.claim("w", 60) is not None
    queue.finish(1, "w", {"energy": -1.0, "forces": forces})
    assert [row.id for row in queue.rows()] == [1, 2, 3, 4, 5, 6]
    damage(path, *flipped(forces))
    damage(path, *flipped(kept(1).frame.positions))
    damage(path, *flipped(kept(2).force_spread))
    said: list[str] = []
    damaged = Queue(path, report=said.append)
    for _ in range(2):
        assert [row.id for row in damaged.rows()] == [4, 5, 6]
    assert len(said) == 3
    for id, what in ((1, "its label does not match its digest"), (2, "match its digest"), (3, "match its digest")):
        with pytest.raises(QueueError, match=rf"row {id} of the queue .* is damaged \(.*{what}\)"):
            damaged.get(id)
    row = Queue(path, report=said.append).claim("w", 60)
    assert row is not None
    assert row.id == 4


def test_a_row_of_an_older_beadwork_is_held_against_its_fingerprint(queue: Queue, path: Path, kept: Make) -> None:
    """It has no digest: it is read as before, and set aside where its structure has another fingerprint."""
    queue.add_all([kept(seed) for seed in range(2)])
    with ase.db.connect(path, use_lock_file=False) as db:
        for id in (1, 2):
            db.update(id, data={"digest": None})
    assert len(queue.rows()) == 2
    damage(path, *flipped(kept(0).frame.positions))
    said: list[str] = []
    assert [row.id for row in Queue(path, report=said.append).rows()] == [2]
    assert "its structure does not match its fingerprint" in said[0]


def test_check_and_save(
    queue: Queue, path: Path, kept: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`queue check` names what is damaged and ends with the queue's exit code; what is whole is copied as it was, under
    the ids it had, and can be labelled further."""
    queue.add_all([kept(seed) for seed in range(6)])
    assert queue.claim("w", 60) is not None
    queue.finish(1, "w", {"energy": -1.0, "forces": np.ones((6, 3))})
    assert main(["queue", "check", str(path)]) == 0
    assert capsys.readouterr().out == "6 frames, all of them whole\n"
    damage(path, *flipped(kept(2).frame.positions))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE text_key_values SET value = 'waitinh' WHERE key = 'status' AND id = 5")
        connection.commit()
    assert main(["queue", "check", str(path)]) == QueueError.exit_code
    out, err = capsys.readouterr()
    assert [line[:5] for line in out.splitlines()] == ["row 3", "row 5"]
    assert "its status is not that of the index" in out
    assert "--save FILE copies what is whole" in err
    new = tmp_path / "new.db"
    assert main(["queue", "check", str(path), "--save", str(new)]) == 0
    before, after = Queue(path).rows(), Queue(new).rows()
    assert [row.id for row in after] == [1, 2, 4, 5, 6] == [row.id for row in before]
    for one, other in zip(before, after, strict=True):
        assert (one.status, one.fingerprint, one.version, one.attempts, one.worker) == (
            other.status, other.fingerprint, other.version, other.attempts, other.worker,
        )  # fmt: skip
        np.testing.assert_array_equal(one.kept.frame.positions, other.kept.frame.positions)
        np.testing.assert_array_equal((one.label or {}).get("forces"), (other.label or {}).get("forces"))
    assert [row.id for row in Queue(new).rows(status="waiting")] == [2, 4, 5, 6]  # its index is whole again
    assert Queue(new).add(kept(2)) == 7
    assert main(["queue", "check", str(path), "--save", str(new)]) == QueueError.exit_code  # nothing is written over


def test_no_flipped_bits_are_read_as_something_else(queue: Queue, path: Path, kept: Make, tmp_path: Path) -> None:
    """1 to 32 turned bits anywhere in 60 copies of a queue: each row comes back as it was or is said to be damaged, and
    where nothing can be read it is a sentence; never a traceback, nor other numbers."""
    queue.add_all([kept(seed) for seed in range(20)])
    whole, good = path.read_bytes(), {row.id: row.kept for row in queue.rows()}
    counts = {"all": 0, "some": 0, "none": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        content = bytearray(whole)
        for at in rng.integers(100, len(whole), rng.choice([1, 2, 4, 8, 32])):
            content[at] ^= 1 << int(rng.integers(8))
        copy = tmp_path / f"{seed}.db"
        copy.write_bytes(content)
        said: list[str] = []
        try:
            rows = Queue(copy, report=said.append).rows()
        except QueueError:
            counts["none"] += 1
            continue
        for row in rows:
            np.testing.assert_array_equal(row.kept.frame.positions, good[row.id].frame.positions)
            np.testing.assert_array_equal(row.kept.force_spread, good[row.id].force_spread)
            assert row.status == "waiting"
        assert len(rows) == 20 or said
        counts["all" if len(rows) == 20 else "some"] += 1
    assert min(counts.values()) > 0, counts


def test_a_change_keeps_other_writers_out_from_its_first_reading_on(queue: Queue, path: Path) -> None:
    """Else two that read first and write then would both be refused, at once, whatever their patience."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        with queue._change(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")


def test_a_commit_waits_for_the_disk(queue: Queue) -> None:
    """A frame that was reported kept is there after a power failure: SQLite's FULL (2), and a rollback journal."""
    with queue._change() as db:
        assert db.connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_file_system_without_locks_is_said_so(path: Path, kept: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOLCK is for SQLite what another's lock is; nobody is looked for who has held it."""
    queue = Queue(path, create=True, patience=0.1)

    def lockf(*ignored: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(fcntl, "lockf", lockf)
        with pytest.raises(QueueError, match="its file system refuses locks"):
            queue.add(kept(0))
        monkeypatch.undo()
        with pytest.raises(QueueError, match="another process has held it"):
            queue.add(kept(0))


def test_the_digest_of_a_label_is_that_of_its_numbers() -> None:
    """Databases write numbers and order entries in ways of their own: equal labels have one digest, others another."""
    label = {"energy": 1e22, "forces": np.array([[-0.0, 1.0, 2.5]]), "charge": 1, "extra": {"a": (1, 2), "b": None}}
    same = {"extra": {"b": None, "a": [1.0, 2]}, "charge": 1, "forces": np.array([[0.0, 1.0, 2.5]]), "energy": 10**22}
    assert label_digest(label) == label_digest(same)
    assert label_digest(label) != label_digest({**label, "charge": 2})
    assert label_digest(label) != label_digest({**label, "forces": np.array([[0.0, 1.0, 2.5000000000000004]])})
