"""The same queue on PostgreSQL: a server by URL (BEADWORK_TEST_POSTGRES), or one made for the test.

BEADWORK_TEST_POSTGRES names a database, as in postgresql://USER@HOST/postgres, from which others are made: the tests
work in those, and leave it as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from ase.calculators.lj import LennardJones

from beadwork.errors import QueueError
from beadwork.harvest.queue import Queue, _with_timeouts
from beadwork.harvest.row import KeptFrame
from beadwork.label.label import Label

psycopg2 = pytest.importorskip("psycopg2", reason="needs beadwork[postgres]")
pytest.importorskip("ase_db_backends", reason="needs beadwork[postgres]")

pytestmark = pytest.mark.slow
Make = Callable[[int], KeptFrame]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a database of a server's, in which others can be made."""
    if url := os.environ.get("BEADWORK_TEST_POSTGRES"):
        yield url
        return
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("no PostgreSQL: neither BEADWORK_TEST_POSTGRES nor initdb and pg_ctl on PATH")
    with tempfile.TemporaryDirectory(prefix="bw-") as name:
        folder = Path(name)
        user = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = 65534
            os.chown(folder, user, -1)

        def run(*command: str) -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder, timeout=120)

        run("initdb", "-D", f"{name}/data", "-A", "trust", "-U", "bead")
        run(
            "pg_ctl",
            "-D",
            f"{name}/data",
            "-o",
            f"-k {name} -c listen_addresses=''",
            "-l",
            f"{name}/log",
            "-w",
            "start",
        )
        try:
            yield f"postgresql://bead:secret@/postgres?host={name}"
        finally:
            run("pg_ctl", "-D", f"{name}/data", "-m", "immediate", "-w", "stop")


def instead(server: str, name: str) -> str:
    """The same URL with the database of this name; fails for one where the name would not be taken, which is asked of
    libpq itself: the tables would be made in a database of the user's."""
    parts = urlsplit(server)
    changed = f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")
    try:
        named = parts.path.strip("/") and psycopg2.extensions.parse_dsn(changed)["dbname"] == name
    except psycopg2.ProgrammingError:
        named = False
    if not named:
        pytest.fail(
            "BEADWORK_TEST_POSTGRES is to name the database from which those of the tests are made, and nothing else "
            "in it may: postgresql://USER@HOST/postgres"
        )
    return changed


@pytest.fixture
def url(server: str) -> Iterator[str]:
    """URL of an empty database."""

    def order(sql: str) -> None:
        with closing(psycopg2.connect(server)) as connection:
            connection.autocommit = True
            connection.cursor().execute(sql)

    name = f"beadwork_test_{os.getpid()}"
    address = instead(server, name)
    order(f"CREATE DATABASE {name}")
    yield address
    order(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_frame_of_unknown_spread(url: str, kept: Make) -> None:
    """What the user brings has NaN for its spread and no models, which JSON does not know."""
    queue = Queue(url, create=True)
    one = kept(1)
    unknown = np.full(len(one.frame.numbers), np.nan)
    queue.add(replace(one, energy_spread=np.nan, force_spread=unknown, member_energies=np.empty(0), models=()))
    (row,) = queue.rows()
    assert np.isnan(row.kept.force_spread).all()
    assert row.kept.force_spread.shape == unknown.shape
    assert np.isnan(row.kept.energy_spread)
    assert row.kept.member_energies.shape == (0,)


@pytest.mark.parametrize(
    "server",
    [
        "me@host/postgres",
        "me:secret@host:5433/mine",
        "me@host/postgres?sslmode=require",
        "/postgres",
        "me@/x?host=/tmp",
    ],
)
def test_tables_are_made_in_another_database(server: str) -> None:
    """However the URL is written, and whatever its database is called, the tests work in one of their own, as the same
    user of the same server."""
    given, made = (
        psycopg2.extensions.parse_dsn(url)
        for url in (f"postgresql://{server}", instead(f"postgresql://{server}", "own"))
    )
    assert made == given | {"dbname": "own"}


@pytest.mark.parametrize("server", ["postgresql://me@host", "postgresql://me@host/x?dbname=mine", "dbname=mine"])
def test_no_table_is_made_in_the_users_database(server: str) -> None:
    """A URL whose database could not be exchanged is refused with a sentence."""
    with pytest.raises(pytest.fail.Exception, match="BEADWORK_TEST_POSTGRES is to name"):
        instead(server, "own")


def test_frames_and_claims(url: str, kept: Make) -> None:
    """What goes in comes out; once; a claim is for one worker and ends; labels come back."""
    with pytest.raises(QueueError, match="empty") as caught:
        Queue(url)
    assert "secret" not in str(caught.value)
    queue = Queue(url, create=True)
    assert queue.add_all([kept(1), kept(2), kept(1)]) == [1, 2, None]
    row = queue.get(2)
    np.testing.assert_array_equal(row.kept.frame.positions, kept(2).frame.positions)
    np.testing.assert_array_equal(row.kept.force_spread, kept(2).force_spread)
    assert row.kept.models == kept(2).models
    assert [r.id for r in queue.rows(status="waiting")] == [1, 2]
    assert queue.claim("ann", 60) is not None
    assert queue.claim("bob", -1, id=2) is not None
    taken = queue.claim("cid", 60)
    assert taken is not None
    assert (taken.id, taken.worker, taken.attempts) == (2, "cid", 2)
    assert queue.claim("dan", 60) is None
    with pytest.raises(QueueError, match="claimed by cid, not claimed by bob"):
        queue.finish(2, "bob", {})
    queue.finish(1, "ann", {"energy": -1.5, "forces": np.ones((6, 3))})
    label = queue.get(1).label
    assert label is not None
    np.testing.assert_array_equal(label["forces"], np.ones((6, 3)))


def test_failure_undoes_the_batch(url: str, kept: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after the first of two frames leaves neither, and no lock."""
    from ase_db_backends.postgresql import PostgreSQLDatabase

    queue = Queue(url, create=True, patience=2)
    write = PostgreSQLDatabase._write

    def frail(self: object, atoms: object, keys: dict[str, object], data: object, id: object) -> object:
        if keys["evaluation"] == 2:
            raise psycopg2.OperationalError("connection lost")
        return write(self, atoms, keys, data, id)

    monkeypatch.setattr(PostgreSQLDatabase, "_write", frail)
    with pytest.raises(QueueError, match="connection lost"):
        queue.add_all([kept(1), kept(2)])
    monkeypatch.undo()
    assert len(queue) == 0
    assert queue.add_all([kept(1), kept(2)]).count(None) == 0


def test_many_writers_at_once(url: str, kept: Make) -> None:
    """Four servers make the queue and offer the same frames: each frame once, under its own id."""
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            queue = Queue(url, create=True)
            for seed in range(10):
                queue.add(kept(seed))
        except QueueError as error:
            failures.append(error)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(row.kept.evaluation for row in Queue(url).rows()) == list(range(10))
    with closing(psycopg2.connect(url)) as connection:
        cursor = connection.cursor()
        # the id that ASE's backend gave a row's keys is the id of that row
        cursor.execute(
            "SELECT count(*) FROM systems JOIN text_key_values t ON t.id = systems.id "
            "WHERE t.key = 'fingerprint' AND t.value = systems.key_value_pairs ->> 'fingerprint'"
        )
        assert cursor.fetchone() == (10,)


def test_two_hosts_label_one_queue(url: str, kept: Make, tmp_path: Path) -> None:
    """Two `beadwork label` in folders of their own: each frame is labelled by one of them, as it is."""
    queue = Queue(url, create=True)
    queue.add_all([kept(seed) for seed in range(12)])
    settings = tmp_path / "labeller.toml"
    settings.write_text(
        'kind = "ase"\ncharge = 0\n[settings]\ntheory = "LJ"\nignores_charge = true\n'
        'calculator = "ase.calculators.lj:LennardJones"\n'
        "arguments = { epsilon = 0.01 }\n"  # atoms are where chance puts them, and no force may be a label's fault
    )
    command = [sys.executable, "-m", "beadwork.cli", "label", url, "--with", str(settings)]
    hosts = []
    for host in ("ann", "bob"):
        (tmp_path / host).mkdir()
        hosts.append(subprocess.Popen(command, cwd=tmp_path / host, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    said = [host.communicate(timeout=600) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert sum(int(out.split()[0]) for out, _ in said) == 12, said
    for row in queue.rows():
        assert (row.status, row.attempts) == ("labelled", 1)
        atoms = row.kept.frame.to_atoms()
        atoms.calc = LennardJones(epsilon=0.01)
        label = Label.from_dict(row.label or {})
        assert label.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        np.testing.assert_allclose(label.forces, atoms.get_forces(), rtol=1e-10)


def test_a_claim_is_renewed(url: str, kept: Make) -> None:
    """As in a file."""
    queue = Queue(url, create=True)
    queue.add(kept(1))
    queue.claim("ann", 1)
    queue.renew(1, "ann", 600)
    assert queue.claim("bob", 60) is None
    assert (queue.get(1).expires or 0.0) > time.time() + 500


@pytest.mark.parametrize("query", ["", "?host=/tmp", "?connect_timeout=3&host=/tmp"])
def test_a_host_that_is_gone_is_not_waited_for_without_end(query: str) -> None:
    """libpq itself reads the limits that are added; one that the URL has is kept."""
    read = psycopg2.extensions.parse_dsn(_with_timeouts(f"postgresql://me:secret@host/water{query}"))
    assert (read["keepalives_idle"], read["tcp_user_timeout"]) == ("30", "60000")
    assert read["connect_timeout"] == ("3" if "connect_timeout" in query else "10")
    assert (read["user"], read["password"], read["dbname"]) == ("me", "secret", "water")


def test_claims_go_by_the_clock_of_the_database(url: str, kept: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour ahead does not take what another one is computing."""
    queue = Queue(url, create=True)
    queue.add(kept(0))
    row = queue.claim("here", 60.0)
    assert row is not None
    ahead = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert queue.claim("ahead", 60.0) is None
    queue.renew(row.id, "here", 60.0)
