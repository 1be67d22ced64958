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
from beadwork.harvest.row import Damaged, KeptFrame, Row, from_ase, label_digest, to_ase
from beadwork.log import logger
from beadwork.packages import pip_install

WAITING, CLAIMED, LABELLED, FAILED = "waiting", "claimed", "labelled", "failed"

#: the entry in ASE's metadata by which our databases are recognised; the number is that of the format
_METADATA = {"beadwork_queue": 1}
_UNIQUE = "CREATE UNIQUE INDEX IF NOT EXISTS beadwork_fingerprint ON text_key_values(value) WHERE key = 'fingerprint'"


class DiskFullError(QueueError):
    """A disk that is full, or fails: nothing can be written until somebody mends it."""


class ClaimLost(QueueError):
    """A change to a frame by a worker that has no claim on it, or no longer."""


class Queue:
    """A queue at a path (SQLite) or a `postgresql://` URL. Safe to use from several threads and processes.

    create: make it where there is none (the file readable by its user alone); otherwise that is a QueueError.
    patience: s to wait for other writers. report: called once with a message for every damaged row, which is skipped
    (logged by default). Every method raises QueueError when the queue cannot be read or written; a change that raises
    has not happened.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        create: bool = False,
        patience: float = 20.0,
        report: Callable[[str], None] = logger.warning,
    ) -> None:
        address = os.fspath(url)
        self._postgres = address.startswith(("postgresql://", "postgres://"))
        #: the queue's name in messages; a password in the URL is left out
        self.name = _without_password(address) if self._postgres else address
        # absolute: a worker may open it from another folder
        self._address = address if self._postgres else str(Path(address).expanduser().absolute())
        self._patience = patience
        self._report = report
        self._damaged: dict[int, str] = {}  # damaged rows by id, with what is wrong
        # a transaction at a time in this process too: SQLite would make a second thread wait until its timeout
        self._one_at_a_time = threading.Lock()
        self._failures: tuple[type[Exception], ...] = (sqlite3.Error, OSError)
        if self._postgres:
            self._failures += (_psycopg2().Error,)
        elif "://" in address:
            raise QueueError(
                f"a queue cannot be kept at {_without_password(address)}: give a path, or a postgresql:// URL"
            )
        else:
            self._ensure_file(create)
        try:
            self._prepare(create)
        # ASE's own reading of damaged text; such errors are no error of sqlite3
        except (ValueError, TypeError, KeyError) as error:
            raise QueueError(
                f"the queue {self.name} cannot be opened: malformed, {error}", _MALFORMED_REMEDY
            ) from error

    def __len__(self) -> int:
        with self._open() as db:
            return int(db.count())

    @property
    def url(self) -> str:
        """The argument with which another process opens the same queue: an absolute path, or the URL with password."""
        return self._address

    def check(self) -> None:
        """Raise QueueError unless this user may write it, and no other process locks it for longer than patience."""
        with self._change() as db:
            # BEGIN IMMEDIATE succeeds on a read-only file; only a statement that writes fails
            db.connection.cursor().execute("DELETE FROM systems WHERE 1 = 0")

    def add(self, kept: KeptFrame) -> int | None:
        """Store one frame; see `add_all`."""
        return self.add_all([kept])[0]

    def add_all(self, frames: Sequence[KeptFrame]) -> list[int | None]:
        """Store frames in one transaction, all or none, and return their ids once they are committed.

        None for a frame that the queue has already (equal fingerprint).
        """
        rows = [to_ase(kept, WAITING) for kept in frames]
        ids: list[int | None] = []
        with self._change() as db:
            for atoms, keys, data in rows:
                db.change_count = 0  # else ASE commits in the middle, after every 5000 statements
                # within the transaction: nobody can store the same frame in between
                known = db.count(fingerprint=keys["fingerprint"])
                ids.append(None if known else int(db.write(atoms, keys, data)))
        return ids

    def rows(self, *, status: str | None = None) -> list[Row]:
        """Return the rows, oldest first; with this status where given. Damaged ones are reported and skipped."""
        wanted = {} if status is None else {"status": status}
        with self._open() as db:
            try:
                return [self._read(row) for row in db.select(sort="id", **wanted)]
            except Exception as error:  # damaged bytes can raise anything; then row by row, to lose only those
                if _is_access_error(error):
                    raise
            return [row for _, row in self._whole(db) if status in (None, row.status)]

    def damaged(self) -> dict[int, str]:
        """Read everything, and return what is wrong with each damaged row, by id; 0 stands for the file itself.

        A row's status and fingerprint are stored in it and in a table for searching; where these differ, a search may
        miss the row.
        """
        with self._open() as db:
            whole = dict(self._whole(db))
            found = dict(self._damaged)
            for id, row in whole.items():
                for key, value in (("status", row.status), ("fingerprint", row.fingerprint)):
                    try:
                        unlike = db.count(**{key: value, "id": id}) != 1
                    except sqlite3.DatabaseError as error:
                        if _is_access_error(error):
                            raise
                        unlike = True
                    if unlike:
                        found[id] = self._damaged_message(id, f"its {key} is not that of the index")
            if not self._postgres:
                # 3: the first errors suffice, and a large file could have thousands
                lines = [str(line) for (line,) in db.connection.execute("PRAGMA integrity_check(3)")]
                if lines != ["ok"]:
                    found[0] = f"SQLite finds in the queue {self.name}: {' '.join(' '.join(lines).split())}"
            return found

    def save(self, path: Path) -> int:
        """Copy every intact row into a new queue, with its id, status and label, and return how many these are.

        Raises QueueError where the path exists.
        """
        if path.exists():
            raise QueueError(f"{path} is there already", "name a new file for the rows that are whole")
        new = Queue(path, create=True, patience=self._patience)
        with self._open() as db, new._change() as other:
            count = 0
            for id, row in self._whole(db):
                atoms, keys, data = to_ase(row.kept, row.status)
                known: dict[str, Any] = {"attempts": row.attempts, "expires": row.expires, "beadwork": row.version}
                more: dict[str, Any] = {"worker": row.worker, "reason": row.reason, "label": row.label}
                keys |= {key: value for key, value in known.items() if value is not None}
                data |= {key: value for key, value in more.items() if value is not None}
                if row.label is not None:
                    data["label_digest"] = label_digest(row.label)
                other.change_count = 0
                if other.count(fingerprint=row.fingerprint):
                    continue  # the index was damaged, and a second row of the same structure was stored
                # the same id as before, because datasets and logs name rows by it
                other.connection.execute("DELETE FROM sqlite_sequence WHERE name = 'systems'")
                other.connection.execute("INSERT INTO sqlite_sequence VALUES ('systems', ?)", (id - 1,))
                other.write(atoms, keys, data)
                count += 1
        return count

    def get(self, id: int) -> Row:
        """Return one row."""
        with self._open() as db:
            return self._row(db, id)

    def now(self) -> float:
        """The clock by which claims expire: Unix time, s."""
        with self._open() as db:
            return self._now(db)

    def claim(self, worker: str, lease: float, id: int | None = None) -> Row | None:
        """Take the oldest waiting frame (or the one named) for `lease` seconds; None where there is none to take.

        A frame whose claim has expired can be claimed again: its worker is assumed to be dead.
        """
        with self._change() as db:
            now = self._now(db)
            for candidate in self._free(db, now, id):
                try:
                    row = self._row(db, candidate)
                except Damaged as error:
                    self._skip_damaged(candidate, str(error))
                    continue
                # the status first, by one conditional UPDATE: of two workers one finds it changed
                if self._change_status(db, candidate, row.status, CLAIMED):
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
        """Extend a claim to `lease` seconds from now."""
        with self._change() as db:
            self._claimed(db, id, worker)
            db.update(id, expires=self._now(db) + lease)

    def retry(self, id: int) -> None:
        """Let a failed frame wait again, with no attempts counted; frames of another status stay as they are."""
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
        """Store why a claimed frame got no label; it waits again, or is marked as failed for good."""
        with self._change() as db:
            self._claimed(db, id, worker)
            db.update(id, status=WAITING if again else FAILED, data={"reason": reason})

    def _free(self, db: Any, now: float, id: int | None) -> Iterator[int]:
        """Ids that can be claimed, oldest first."""
        named = [] if id is None else [("id", "=", id)]
        # one id at a time, without data: a queue of thousands of frames is not read to take one
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
            # of a frame that waits and one whose claim has expired the older one
            last = min(free)
            yield last

    def _whole(self, db: Any) -> Iterator[tuple[int, Row]]:
        """Every row that can be read, one by one, by id; the others are reported and skipped."""
        for id in sorted(self._ids(db)):
            try:
                yield id, self._row(db, id)
            except QueueError as error:
                self._skip_damaged(id, str(error))

    def _ids(self, db: Any) -> set[int]:
        """The ids that can be read: upwards from the first and downwards from the last, each until a damaged page."""
        found: set[int] = set()
        broken: Exception = QueueError(f"the queue {self.name} is damaged")
        for order in ("ASC", "DESC"):
            cursor = db.connection.cursor()
            try:
                # from both ends: a damaged page stops a reading, but not the one that comes from the other side
                cursor.execute(f"SELECT id FROM systems ORDER BY id {order}")
                while (one := cursor.fetchone()) is not None:
                    found.add(int(one[0]))
            except Exception as error:
                if _is_access_error(error):
                    raise
                broken = error
            else:
                return found
        if not found:
            raise broken
        self._skip_damaged(
            0, f"the list of rows of the queue {self.name} is damaged, and there may be more rows ({broken})"
        )
        return found

    def _skip_damaged(self, id: int, message: str) -> None:
        if id not in self._damaged:
            self._damaged[id] = message
            self._report(f"{message}; the other rows are read (`beadwork queue check` lists all damage)")

    def _row(self, db: Any, id: int) -> Row:
        try:
            for row in db.select(id=id):
                return self._read(row)
        except (QueueError, OverflowError):  # an id beyond SQLite's 64 bits is the caller's, no damage
            raise
        except Exception as error:
            if _is_access_error(error):
                raise
            raise Damaged(self._damaged_message(id, f"it cannot be read, {type(error).__name__}: {error}")) from error
        raise QueueError(f"the queue {self.name} has no row {id}", "`beadwork queue list` shows those it has")

    def _read(self, row: Any) -> Row:
        try:
            read = from_ase(row)
            if read.status not in (WAITING, CLAIMED, LABELLED, FAILED):
                raise Damaged(f"it is {read.status!r}, which is no status")
            return read
        except Damaged as error:
            raise Damaged(self._damaged_message(row.id, str(error))) from error
        except KeyError as error:
            raise QueueError(
                f"row {row.id} of the queue {self.name} has no {error}: beadwork did not write it",
                "move it to a database of its own with `ase db`",
            ) from error

    def _damaged_message(self, id: int, fault: str) -> str:
        return f"row {id} of the queue {self.name} is damaged ({fault})"

    def _claimed(self, db: Any, id: int, worker: str) -> Row:
        row = self._row(db, id)
        if row.status != CLAIMED or row.worker != worker:
            holder = f" by {row.worker}" if row.status == CLAIMED else ""
            raise ClaimLost(
                f"row {id} of the queue {self.name} is {row.status}{holder}, not claimed by {worker}: "
                "the claim expired",
                "claim frames for longer than a label takes",
            )
        return row

    def _now(self, db: Any) -> float:
        """Unix time, s. That of the PostgreSQL server: hosts whose clocks differ by a lease would steal claims."""
        if not self._postgres:
            return time.time()
        cursor = db.connection.cursor()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
        return float(cursor.fetchone()[0])

    def _change_status(self, db: Any, id: int, before: str, after: str) -> bool:
        """Change a status by one conditional UPDATE; False where another worker was faster."""
        cursor = db.connection.cursor()
        sql = "UPDATE text_key_values SET value = ? WHERE id = ? AND key = 'status' AND value = ?"
        cursor.execute(sql, (after, id, before))
        # ase-db-backends' wrapper of psycopg2's cursor has no rowcount
        return bool(getattr(cursor, "cur", cursor).rowcount == 1)

    def _ensure_file(self, create: bool) -> None:
        path = Path(self._address)
        if path.is_dir():
            raise QueueError(f"the queue {self.name} is a directory", f"give a file's name, e.g. {path / 'queue.db'}")
        if path.exists():
            return
        if not create:
            raise QueueError(
                f"there is no queue at {self.name}", "check the path (a server makes it on its first start)"
            )
        try:
            # an empty file is an empty SQLite database; SQLite itself would make it readable by others (umask)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise QueueError(
                f"cannot make the queue {self.name}: {error.strerror}",
                "give a path in a directory that you may write to",
            ) from error

    def _prepare(self, create: bool) -> None:
        """Check that the database is a queue, and make it one where it is empty.

        A creation that was killed half way is finished here: until the metadata are written, all steps can be repeated.
        """
        tables = self._tables()
        # the tables that ASE makes
        if tables and not {"systems", "information", "text_key_values"} <= tables:
            raise QueueError(f"{self.name} is a database of something else", "choose another place for the queue")
        if not tables and not create:
            raise QueueError(
                f"the queue {self.name} is empty", "start a server with it, `queue add` frames, or check the path"
            )
        if not tables:
            with self._change() as db:
                db.metadata  # noqa: B018  (ASE makes its tables at the first request)
        with self._open() as db:
            mark, rows = db.metadata, int(db.count())
        version = mark.get("beadwork_queue")
        if version is None and rows == 0 and create:
            with self._change() as db:
                db.connection.cursor().execute(_UNIQUE)
                db.metadata = {**db.metadata, **_METADATA}
        elif version is None:
            raise QueueError(
                f"{self.name} is an ASE database that beadwork did not make", "choose another place for the queue"
            )
        elif version > _METADATA["beadwork_queue"]:
            raise QueueError(f"the queue {self.name} was made by a newer beadwork", "update this one")

    def _tables(self) -> set[str]:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table'"
        if self._postgres:
            sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
        with self._translate_errors():
            if self._postgres:
                connection = _psycopg2().connect(_with_timeouts(self._address))
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
        """Yield an ASE database whose connection ends with the block: committed, or rolled back if the block raised."""
        from ase.db import connect

        with self._one_at_a_time, self._translate_errors():
            # ASE's lock file would survive kill -9, and the next writer would wait for it for ever
            if self._postgres:
                db = connect(_with_timeouts(self._address), type="postgresql")
            else:
                db = connect(self._address, type="db", use_lock_file=False)
            with db:
                if self._postgres:
                    # ASE calls connection.rollback(), which ase-db-backends' wrapper lacks
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
                # from its first reading on: two that read first and write then would both be refused
                db.connection.execute("BEGIN IMMEDIATE")
            yield db

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise QueueError for any error of a database."""
        try:
            yield
        except self._failures as error:
            text = " ".join(str(error).split()) or type(error).__name__
            # SQLite reports a file system without locks as a file that another process holds
            if "locked" in text and not self._postgres and not locks(Path(self._address).parent):
                raise QueueError(
                    f"the queue {self.name}: its file system refuses locks, without which two writers would damage it",
                    "put it on a local disk, or use PostgreSQL",
                ) from error
            kind = DiskFullError if any(sign in text for sign in DISK_FULL_TEXTS) else QueueError
            raise kind(f"the queue {self.name}: {text}", _remedy(text, self._patience)) from error


def _is_access_error(error: Exception) -> bool:
    """Whether this error is not of damaged bytes: a lock, a full or failing disk, a database server that is gone."""
    # 'Could not decode to UTF-8' is an OperationalError too, and of damaged bytes
    if isinstance(error, sqlite3.OperationalError):
        return "decode" not in str(error)
    return isinstance(error, OSError) or (
        not isinstance(error, sqlite3.DatabaseError) and type(error).__module__.startswith("psycopg2")
    )


#: texts of SQLite's, PostgreSQL's and the system's errors where a disk is full or fails: they have no class for it
DISK_FULL_TEXTS = ("disk is full", "disk I/O", "No space left")
#: what to do where not even the tables can be read
_MALFORMED_REMEDY = "the file is damaged: keep it, rescue what `sqlite3 FILE .recover` finds, and start a new one"


def _remedy(said: str, patience: float) -> str:
    for sign, remedy in (
        ("locked", f"another process has held it for more than {patience:g} s: find it, or use PostgreSQL for many"),
        ("lock timeout", f"another process has held it for more than {patience:g} s: find it"),
        ("readonly", "make the file and its directory writable for this user, or choose another path"),
        ("unable to open", "check that this user may read and write the file and its directory"),
        ("full", "make room on the disk; frames already in the queue are safe"),
        ("not a database", "it is something else or damaged: choose another path (structures: `beadwork queue add`)"),
        ("malformed", _MALFORMED_REMEDY),
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
            f"a queue on PostgreSQL needs a package that is missing ({error.name})",
            pip_install("ase-db-backends", "psycopg2-binary"),
        ) from error


def _with_timeouts(url: str) -> str:
    """A PostgreSQL URL with a timeout for every wait, where it has none.

    TCP itself notices a host that has lost its power or its network only after hours.
    """
    wanted = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 60_000}  # s, s, ms: as libpq names them
    missing = [f"{name}={value}" for name, value in wanted.items() if f"{name}=" not in url]
    return url + ("&" if "?" in url else "?") * bool(missing) + "&".join(missing)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")
    user = host[0].partition(":")[0]
    # without the query, since `?password=` is allowed there too
    return f"{parts.scheme}://{user}{host[1]}{host[2]}{parts.path}"
