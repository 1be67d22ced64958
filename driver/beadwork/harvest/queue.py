"""The frames that wait for labels: an ASE database, so that `ase db` and `ase gui` read it too.

What holds at any instant, kill -9 included: a frame is in the queue whole and once, or not at all. Every change is one
transaction that excludes other writers (SQLite: BEGIN IMMEDIATE; PostgreSQL: a table lock, because ASE's backend reads
a new row's id from a sequence that all writers share), and a unique index on the fingerprint refuses a frame that
another server has stored. A connection lives as long as its transaction, so nothing is shared between
threads and nothing is left open.

SQLite keeps its rollback journal (not WAL, which needs memory shared between all readers and cannot work on a network
file system) and waits for the disk at every commit: a commit survives a killed process and a power failure. After a
kill a `-journal` file may lie beside the queue; it belongs to it, and the next one to open the queue undoes the
unfinished transaction with it. On NFS all this is as good as the server's file locks: use PostgreSQL for several hosts.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from beadwork.disk import locks
from beadwork.errors import QueueError
from beadwork.harvest.row import Damaged, Kept, Row, from_ase, label_digest, to_ase

WAITING, CLAIMED, LABELLED, FAILED = "waiting", "claimed", "labelled", "failed"

#: what our databases say of themselves in ASE's metadata
_MARK = {"beadwork_queue": 1}
_UNIQUE = "CREATE UNIQUE INDEX IF NOT EXISTS beadwork_fingerprint ON text_key_values(value) WHERE key = 'fingerprint'"


def _say(text: str) -> None:
    print(f"beadwork: {text}", file=sys.stderr)


class ClaimLost(QueueError):
    """A frame that is not, or not any more, claimed by who wants to change it."""


class Queue:
    """A queue at a path (SQLite) or a `postgresql://` URL. Safe to use from several threads and processes.

    create: make it where there is none (the file readable by its user alone); otherwise that is a QueueError.
    patience: s to wait for other writers. say: told once of every row that is damaged, and left out (stderr by
    default). Every method raises QueueError when the queue cannot be read or
    written; a change that raises has not happened.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        create: bool = False,
        patience: float = 20.0,
        say: Callable[[str], None] = _say,
    ) -> None:
        address = os.fspath(url)
        self._postgres = address.startswith(("postgresql://", "postgres://"))
        #: how messages call the queue; a password in the URL is left out
        self.name = _without_password(address) if self._postgres else address
        self._address = address if self._postgres else str(Path(address).expanduser().absolute())
        self._patience = patience
        self._say = say
        self._damaged: dict[int, str] = {}  # rows that were found so, and how
        self._one_at_a_time = threading.Lock()
        self._failures: tuple[type[Exception], ...] = (sqlite3.Error, OSError)
        if self._postgres:
            self._failures += (_psycopg2().Error,)
        elif "://" in address:
            raise QueueError(
                f"a queue cannot be kept at {_without_password(address)}: give a path, or a postgresql:// URL"
            )
        else:
            self._find_file(create)
        try:
            self._prepare(create)
        except (ValueError, TypeError, KeyError) as error:  # of what ASE and SQLite read there as text
            raise QueueError(f"the queue {self.name} cannot be opened: malformed, {error}; {_MALFORMED}") from error

    def __len__(self) -> int:
        with self._open() as db:
            return int(db.count())

    @property
    def url(self) -> str:
        """What another process opens the same queue with: an absolute path, or the URL with its password."""
        return self._address

    def check(self) -> None:
        """Raise QueueError unless this user may write it, and nobody else holds it for longer than the patience."""
        with self._change() as db:
            # SQLite makes BEGIN IMMEDIATE a mere reading where the file may only be read
            db.connection.cursor().execute("DELETE FROM systems WHERE 1 = 0")

    def add(self, kept: Kept) -> int | None:
        """Store one frame; see `add_all`."""
        return self.add_all([kept])[0]

    def add_all(self, frames: Sequence[Kept]) -> list[int | None]:
        """Store frames in one transaction, all or none, and return their ids once they are committed.

        None stands for a frame that the queue has already (equal fingerprint).
        """
        rows = [to_ase(kept, WAITING) for kept in frames]
        ids: list[int | None] = []
        with self._change() as db:
            for atoms, keys, data in rows:
                db.change_count = 0  # else ASE commits in the midst, every 5000 statements
                known = db.count(fingerprint=keys["fingerprint"])
                ids.append(None if known else int(db.write(atoms, keys, data)))
        return ids

    def rows(self, *, status: str | None = None) -> list[Row]:
        """Return the rows, oldest first; with this status where given. Damaged ones are said, and left out."""
        wanted = {} if status is None else {"status": status}
        with self._open() as db:
            try:
                return [self._read(row) for row in db.select(sort="id", **wanted)]
            except Exception as error:  # whatever damaged bytes lead to
                if _passes(error):
                    raise
            return [row for _, row in self._whole(db) if status in (None, row.status)]

    def damaged(self) -> dict[int, str]:
        """Read everything, and return what is wrong with each damaged row, by id; 0 stands for the file itself.

        A row's status and fingerprint stand in it and in an index; where these differ it is found or not as it comes.
        """
        with self._open() as db:
            whole = dict(self._whole(db))
            found = dict(self._damaged)
            for id, row in whole.items():
                for key, value in (("status", row.status), ("fingerprint", row.fingerprint)):
                    try:
                        unlike = db.count(**{key: value, "id": id}) != 1
                    except sqlite3.DatabaseError as error:
                        if _passes(error):
                            raise
                        unlike = True
                    if unlike:
                        found[id] = self._of(id, f"its {key} is not that of the index")
            if not self._postgres:
                said = [str(line) for (line,) in db.connection.execute("PRAGMA integrity_check(3)")]
                if said != ["ok"]:
                    found[0] = f"SQLite finds in the queue {self.name}: {' '.join(' '.join(said).split())}"
            return found

    def save(self, path: Path) -> int:
        """Copy every row that is whole into a new queue, with its id, status and label, and return how many these are.

        Raises QueueError where there is something already.
        """
        if path.exists():
            raise QueueError(f"{path} is there already; name a new file for the rows that are whole")
        new = Queue(path, create=True, patience=self._patience)
        with self._open() as db, new._change() as other:
            count = 0
            for id, row in self._whole(db):
                atoms, keys, data = to_ase(row.kept, row.status)
                told: dict[str, Any] = {"attempts": row.attempts, "expires": row.expires, "beadwork": row.version}
                more: dict[str, Any] = {"worker": row.worker, "reason": row.reason, "label": row.label}
                keys |= {key: value for key, value in told.items() if value is not None}
                data |= {key: value for key, value in more.items() if value is not None}
                if row.label is not None:
                    data["label_digest"] = label_digest(row.label)
                other.change_count = 0
                if other.count(fingerprint=row.fingerprint):
                    continue  # its index was damaged, and it was kept twice
                # the next id: a dataset names the rows that it was made of
                other.connection.execute("DELETE FROM sqlite_sequence WHERE name = 'systems'")
                other.connection.execute("INSERT INTO sqlite_sequence VALUES ('systems', ?)", (id - 1,))
                other.write(atoms, keys, data)
                count += 1
        return count

    def get(self, id: int) -> Row:
        """Return one row."""
        with self._open() as db:
            return self._row(db, id)

    def claim(self, worker: str, lease: float, id: int | None = None) -> Row | None:
        """Take the oldest waiting frame (or the one named) for `lease` seconds; None where there is none to take.

        A claim that has expired is as good as waiting: its worker is taken for dead.
        """
        with self._change() as db:
            now = self._now(db)
            for candidate in self._free(db, now, id):
                try:
                    row = self._row(db, candidate)
                except Damaged as error:
                    self._set_aside(candidate, str(error))
                    continue
                if self._move(db, candidate, row.status, CLAIMED):
                    db.update(
                        candidate,
                        status=CLAIMED,
                        expires=now + lease,
                        attempts=row.attempts + 1,
                        data={"worker": worker},
                    )
                    return self._row(db, candidate)
        return None

    def renew(self, id: int, worker: str, lease: float) -> None:
        """Make a claim last for `lease` seconds from now."""
        with self._change() as db:
            self._claimed(db, id, worker)
            db.update(id, expires=self._now(db) + lease)

    def again(self, id: int) -> None:
        """Let a frame that was set aside wait once more, its attempts forgotten; other frames stay as they are."""
        with self._change() as db:
            if self._row(db, id).status == FAILED:
                db.update(id, status=WAITING, attempts=0)

    def release(self, id: int, worker: str) -> None:
        """Give a claimed frame back untouched; the attempt does not count."""
        with self._change() as db:
            attempts = self._claimed(db, id, worker).attempts
            db.update(id, status=WAITING, attempts=attempts - 1)

    def finish(self, id: int, worker: str, label: Mapping[str, Any]) -> None:
        """Store the label of a claimed frame: anything that ASE can encode (numbers, strings, arrays, dicts).

        Raises QueueError if the claim expired and another worker took the frame.
        """
        with self._change() as db:
            self._claimed(db, id, worker)
            db.update(id, status=LABELLED, data={"label": dict(label), "label_digest": label_digest(label)})

    def fail(self, id: int, worker: str, reason: str, *, again: bool) -> None:
        """Note why a claimed frame got no label; it waits again, or is set aside for good."""
        with self._change() as db:
            self._claimed(db, id, worker)
            db.update(id, status=WAITING if again else FAILED, data={"reason": reason})

    def _free(self, db: Any, now: float, id: int | None) -> Iterator[int]:
        """Ids that can be claimed, oldest first."""
        named = [] if id is None else [("id", "=", id)]
        last = 0
        while True:
            free = [
                int(row.id)
                for state in ([("status", "=", WAITING)], [("status", "=", CLAIMED), ("expires", "<", now)])
                for row in db.select(
                    [*state, *named, ("id", ">", last)],
                    sort="id",
                    limit=1,
                    columns=["id"],
                    include_data=False,
                )
            ]
            if not free:
                return
            last = min(free)
            yield last

    def _whole(self, db: Any) -> Iterator[tuple[int, Row]]:
        """Every row that can be read, one by one, by id; the others are set aside, and said."""
        for id in sorted(self._ids(db)):
            try:
                yield id, self._row(db, id)
            except QueueError as error:
                self._set_aside(id, str(error))

    def _ids(self, db: Any) -> set[int]:
        """As many as can be found: from the first on, and from the last on until the first page that is damaged."""
        found: set[int] = set()
        broken: Exception = QueueError(f"the queue {self.name} is damaged")
        for order in ("ASC", "DESC"):
            cursor = db.connection.cursor()
            try:
                cursor.execute(f"SELECT id FROM systems ORDER BY id {order}")
                while (one := cursor.fetchone()) is not None:
                    found.add(int(one[0]))
            except Exception as error:
                if _passes(error):
                    raise
                broken = error
            else:
                return found
        if not found:
            raise broken
        self._set_aside(0, f"the list of rows of the queue {self.name} is damaged, and there may be more ({broken})")
        return found

    def _set_aside(self, id: int, said: str) -> None:
        if id not in self._damaged:
            self._damaged[id] = said
            self._say(f"{said}; the others are read (`beadwork queue check` tells of all)")

    def _row(self, db: Any, id: int) -> Row:
        try:
            for row in db.select(id=id):
                return self._read(row)
        except (QueueError, OverflowError):  # the latter: no row has a number that large
            raise
        except Exception as error:
            if _passes(error):
                raise
            raise Damaged(self._of(id, f"it cannot be read, {type(error).__name__}: {error}")) from error
        raise QueueError(f"the queue {self.name} has no row {id}; `beadwork queue list` shows those it has")

    def _read(self, row: Any) -> Row:
        try:
            read = from_ase(row)
            if read.status not in (WAITING, CLAIMED, LABELLED, FAILED):
                raise Damaged(f"it is {read.status!r}, which is no status")
            return read
        except Damaged as error:
            raise Damaged(self._of(row.id, str(error))) from error
        except KeyError as error:
            raise QueueError(
                f"row {row.id} of the queue {self.name} has no {error}: beadwork did not write it; "
                "move it to a database of its own with `ase db`"
            ) from error

    def _of(self, id: int, said: str) -> str:
        return f"row {id} of the queue {self.name} is damaged ({said})"

    def _claimed(self, db: Any, id: int, worker: str) -> Row:
        row = self._row(db, id)
        if row.status != CLAIMED or row.worker != worker:
            holder = f" by {row.worker}" if row.status == CLAIMED else ""
            raise ClaimLost(
                f"row {id} of the queue {self.name} is {row.status}{holder}, not claimed by {worker}: "
                "the claim expired; claim frames for longer than a label takes"
            )
        return row

    def _now(self, db: Any) -> float:
        """Unix time, s. PostgreSQL's own: hosts whose clocks differ by a lease would take each other's claims."""
        if not self._postgres:
            return time.time()
        cursor = db.connection.cursor()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
        return float(cursor.fetchone()[0])

    def _move(self, db: Any, id: int, before: str, after: str) -> bool:
        """Change a status by one conditional UPDATE; False where another was faster."""
        cursor = db.connection.cursor()
        sql = "UPDATE text_key_values SET value = ? WHERE id = ? AND key = 'status' AND value = ?"
        cursor.execute(sql, (after, id, before))
        # ase-db-backends wraps psycopg2's cursor and leaves the count out
        return bool(getattr(cursor, "cur", cursor).rowcount == 1)

    def _find_file(self, create: bool) -> None:
        path = Path(self._address)
        if path.is_dir():
            raise QueueError(f"the queue {self.name} is a directory; give a file's name, e.g. {path / 'queue.db'}")
        if path.exists():
            return
        if not create:
            raise QueueError(f"there is no queue at {self.name}; check the path (a server makes it on its first start)")
        try:
            # an empty file is an empty SQLite database; made here so that nobody else can ever read it
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise QueueError(
                f"cannot make the queue {self.name}: {error.strerror}; give a path in a directory that you may write to"
            ) from error

    def _prepare(self, create: bool) -> None:
        """Check that the database is a queue, and make it one where it is empty.

        A creation that was killed half way is finished here: until the mark is set, all steps can be repeated.
        """
        tables = self._tables()
        if tables and not {"systems", "information", "text_key_values"} <= tables:
            raise QueueError(f"{self.name} is a database of something else; choose another place for the queue")
        if not tables and not create:
            raise QueueError(
                f"the queue {self.name} is empty; start a server with it, `queue add` frames, or check the path"
            )
        if not tables:
            with self._change() as db:
                db.metadata  # noqa: B018  (ASE makes its tables when it is first asked something)
        with self._open() as db:
            mark, rows = db.metadata, int(db.count())
        version = mark.get("beadwork_queue")
        if version is None and rows == 0 and create:
            with self._change() as db:
                db.connection.cursor().execute(_UNIQUE)
                db.metadata = {**db.metadata, **_MARK}
        elif version is None:
            raise QueueError(
                f"{self.name} is an ASE database that beadwork did not make; choose another place for the queue"
            )
        elif version > _MARK["beadwork_queue"]:
            raise QueueError(f"the queue {self.name} was made by a newer beadwork; update this one")

    def _tables(self) -> set[str]:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table'"
        if self._postgres:
            sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
        with self._failing():
            if self._postgres:
                connection = _psycopg2().connect(_patient(self._address))
            else:
                connection = sqlite3.connect(self._address, timeout=self._patience)
            try:
                cursor = connection.cursor()
                cursor.execute(sql)
                return {str(name) for (name,) in cursor.fetchall()}
            finally:
                connection.close()

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Give an ASE database whose connection ends with the block: committed, or undone if the block raised."""
        from ase.db import connect

        with self._one_at_a_time, self._failing():
            # ASE's lock file would survive kill -9, and the next writer would wait for it for ever
            if self._postgres:
                db = connect(_patient(self._address), type="postgresql")
            else:
                db = connect(self._address, type="db", use_lock_file=False)
            with db:
                if self._postgres:
                    # ASE undoes with connection.rollback(), which ase-db-backends' wrapper lacks
                    db.connection.rollback = db.connection.con.rollback
                else:
                    db.connection.execute(f"PRAGMA busy_timeout = {int(1000 * self._patience)}")
                yield db
                # ASE commits at the end too, but would leave the connection open and locked if that failed
                db.connection.commit()

    @contextmanager
    def _change(self) -> Iterator[Any]:
        """Like `_open`, with all other writers kept out until the block ends."""
        with self._open() as db:
            if self._postgres:
                cursor = db.connection.cursor()
                cursor.execute(f"SET lock_timeout = {int(1000 * self._patience)}")
                # held until the tables are made and committed, so that two first servers do not both make them
                cursor.execute("SELECT pg_advisory_xact_lock(hashtext('beadwork'))")
                db.metadata  # noqa: B018  (makes them where they are missing)
                cursor.execute("LOCK TABLE systems IN EXCLUSIVE MODE")
            else:
                db.connection.execute("BEGIN IMMEDIATE")
            yield db

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn what a database raises into a sentence."""
        try:
            yield
        except self._failures as error:
            said = " ".join(str(error).split()) or type(error).__name__
            if "locked" in said and not self._postgres and not locks(Path(self._address).parent):
                raise QueueError(
                    f"the queue {self.name}: its file system refuses locks, by which writers keep out of each other's "
                    "way; put it on a local disk, or use PostgreSQL"
                ) from error
            raise QueueError(f"the queue {self.name}: {said}; {_remedy(said, self._patience)}") from error


def _passes(error: Exception) -> bool:
    """Whether this is none of damaged bytes: a lock, a disk that is full or fails, a database server that is gone."""
    if isinstance(error, sqlite3.OperationalError):
        return "decode" not in str(error)
    return isinstance(error, OSError) or (
        not isinstance(error, sqlite3.DatabaseError) and type(error).__module__.startswith("psycopg2")
    )


#: remedy where not even the tables are found
_MALFORMED = "the file is damaged: keep it, rescue what `sqlite3 FILE .recover` finds, and start a new one"


def _remedy(said: str, patience: float) -> str:
    for sign, remedy in (
        ("locked", f"another process has held it for more than {patience:g} s: find it, or use PostgreSQL for many"),
        ("lock timeout", f"another process has held it for more than {patience:g} s: find it"),
        ("readonly", "make the file and its directory writable for this user, or choose another path"),
        ("unable to open", "check that this user may read and write the file and its directory"),
        ("full", "make room on the disk; frames already in the queue are safe"),
        ("not a database", "it is something else or damaged: choose another path (structures: `beadwork queue add`)"),
        ("malformed", _MALFORMED),
        ("disk I/O", "the disk or network file system failed: check it, and prefer a local disk"),
        ("connect", "check that the server runs, and the URL's host, port, user and database"),
    ):
        if sign in said:
            return remedy
    return "check the path or URL and the rights of this user"


def _psycopg2() -> Any:
    try:
        import_module("ase_db_backends.postgresql")  # by name, as ASE does: neither it nor psycopg2 has types
        return import_module("psycopg2")
    except ImportError as error:
        raise QueueError(
            f"a queue on PostgreSQL needs a package that is missing ({error.name}); pip install 'beadwork[postgres]'"
        ) from error


def _patient(url: str) -> str:
    """A PostgreSQL URL with an end to every wait for a host that is gone, unless it says so itself."""
    wanted = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 60_000}  # s, s, ms: as libpq names them
    missing = [f"{name}={value}" for name, value in wanted.items() if f"{name}=" not in url]
    return url + ("&" if "?" in url else "?") * bool(missing) + "&".join(missing)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")
    user = host[0].partition(":")[0]
    # a query may hold a password too
    return f"{parts.scheme}://{user}{host[1]}{host[2]}{parts.path}"
