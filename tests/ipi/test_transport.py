"""Sockets, against listeners that behave well and badly."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from beadwork.errors import ConfigError, ConnectionLost, RemoteProtocolError, SimulationError
from beadwork.ipi import wire
from beadwork.ipi.messages import Exit, ForceReady, HangUp, Incoming, PosData, Status
from beadwork.ipi.simulation import read_simulation
from beadwork.ipi.transport import Address, Line, Peer, Transport, address_of, is_stale

#: seconds after which something hangs; less than the default patience
LONG = 30.0


@contextmanager
def listener(path: Path) -> Iterator[socket.socket]:
    """Listen on a unix socket, as i-PI does; the file goes away at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(1)
        server.settimeout(LONG)
        yield server
    path.unlink()


def until(transport: Transport, kind: type, seconds: float = LONG) -> list[object]:
    """Poll until an event of this kind has come; return all that came."""
    events: list[object] = []
    deadline = time.monotonic() + seconds
    while not any(isinstance(event, kind) for event in events):
        assert time.monotonic() < deadline, f"no {kind.__name__} came, only {events}"
        events += [event for _, event in transport.poll(0.05)]
    return events


def test_nobody_there_is_said_after_the_patience(tmp_path: Path) -> None:
    """A server without i-PI ends with a sentence, after the patience and not before; it knows of i-PI's -S."""
    transport = Transport([Line(Address(tmp_path / "nobody"))], patience=0.3)
    begin = time.monotonic()
    with pytest.raises(
        ConnectionLost, match=r"no such socket file yet\); start i-PI, give its -S as --sockets-prefix if"
    ):
        until(transport, HangUp)
    assert 0.3 <= time.monotonic() - begin < LONG
    transport.close()


def test_waiting_costs_no_processor_time(tmp_path: Path) -> None:
    """i-PI's own driver spins at full CPU when its peer is gone; waiting here is sleeping."""
    transport = Transport([Line(Address(tmp_path / "nobody"))], patience=1.0)
    before = time.process_time()
    with pytest.raises(ConnectionLost):
        until(transport, HangUp)
    assert time.process_time() - before < 0.1
    transport.close()


def test_stale_socket_file_is_told_from_a_live_one(tmp_path: Path) -> None:
    """A killed i-PI leaves its socket file behind; only that one may be removed."""
    path = tmp_path / "socket"
    with listener(path):
        assert not is_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert is_stale(path)
    assert not is_stale(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert not is_stale(tmp_path / "file")


def test_connections_are_opened_one_handshake_at_a_time(tmp_path: Path) -> None:
    """More connections than i-PI's backlog holds: the next is dialled when the last has been spoken to."""
    line = Line(Address(tmp_path / "socket"), wanted=4)
    transport = Transport([line], patience=LONG)
    with listener(tmp_path / "socket") as server:
        accepted = []
        for number in range(1, 5):
            transport.poll(0.05)
            assert len(line.peers) == number
            transport.poll(0.05)
            assert len(line.peers) == number
            accepted.append(server.accept()[0])
            accepted[-1].sendall(wire.STATUS)
            until(transport, Status)
            assert accepted[-1].recv(12) == wire.NEEDINIT
        transport.close()
        for sock in accepted:
            sock.close()


def test_lost_connection_is_dialled_again(tmp_path: Path) -> None:
    """An i-PI that dies is waited for, and the next one on the same address is served."""
    transport = Transport([Line(Address(tmp_path / "socket"))], patience=LONG)
    for _ in range(2):
        with listener(tmp_path / "socket") as server:
            transport.poll(0.05)
            transport.poll(0.05)
            deadline = time.monotonic() + LONG
            while not transport.lines[0].peers and time.monotonic() < deadline:
                transport.poll(0.05)
            peer = server.accept()[0]
            peer.sendall(wire.STATUS + b"INIT")
            until(transport, Status)
            peer.close()
        assert HangUp(4) in until(transport, HangUp)
    assert not transport.finished
    transport.close()


def test_exit_ends_the_service(tmp_path: Path) -> None:
    """EXIT from an i-PI that is gone afterwards is the end, at once and without an error."""
    transport = Transport([Line(Address(tmp_path / "socket"))], patience=2 * LONG)
    with listener(tmp_path / "socket") as server:
        transport.poll(0.05)
        peer = server.accept()[0]
        peer.sendall(wire.STATUS + wire.EXIT)
        until(transport, Exit)
        peer.close()
    begin = time.monotonic()
    while not transport.finished:
        transport.poll(0.05)
        assert time.monotonic() - begin < LONG
    transport.close()


def test_foreign_peer_is_refused(tmp_path: Path) -> None:
    """Something else that listens at the address ends in one sentence."""
    transport = Transport([Line(Address(tmp_path / "socket"))], patience=LONG)
    with listener(tmp_path / "socket") as server:
        transport.poll(0.05)
        peer = server.accept()[0]
        peer.sendall(b"220 mail.example ESMTP ready\r\n")
        with pytest.raises(RemoteProtocolError, match="no message of i-PI's"):
            until(transport, Status)
        transport.close()
        peer.close()


def test_listener_that_never_speaks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An i-PI whose polling thread has died takes connections and says nothing: an end with a sentence, not a hang."""
    monkeypatch.setattr("beadwork.ipi.transport.HANDSHAKE_SECONDS", 0.3)
    transport = Transport([Line(Address(tmp_path / "socket"))], patience=0.0)
    with listener(tmp_path / "socket"):
        begin = time.monotonic()
        with pytest.raises(ConnectionLost, match="has not shaken hands"):
            until(transport, HangUp)
        assert 0.3 <= time.monotonic() - begin < LONG
        transport.close()


def test_listener_that_hangs_up_at_once_is_not_dialled_in_a_loop(tmp_path: Path) -> None:
    """A tunnel without anybody behind it: a few attempts in a second, hardly any processor time, and a named end."""
    transport = Transport([Line(Address(tmp_path / "socket"))], patience=1.0)
    attempts = 0

    def refuse(server: socket.socket) -> None:
        nonlocal attempts
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return
            attempts += 1

    with listener(tmp_path / "socket") as server:
        thread = threading.Thread(target=refuse, args=(server,))
        thread.start()
        before = time.process_time()
        with pytest.raises(ConnectionLost, match="closed the connection without a message"):
            until(transport, Exit)
        assert time.process_time() - before < 0.3
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        transport.close()
    assert 2 <= attempts < 12


def test_socket_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in /tmp can be taken by anybody: what listens there is spoken to only if it is ours, or root's."""
    transport = Transport([Line(Address(tmp_path / "socket"))], patience=LONG)
    with listener(tmp_path / "socket"):
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
        if os.getuid() == 0:  # root may be spoken to: here the test itself has to be somebody else
            monkeypatch.setattr("struct.unpack", lambda form, data: (1, 4711, 4711))
        with pytest.raises(ConnectionLost, match="another user"):
            transport.poll(0.05)
        transport.close()


@pytest.mark.parametrize("alive", [False, True])
def test_shared_memory_that_is_gone(tmp_path: Path, alive: bool) -> None:
    """i-PI removes its segments when it lets go of a connection: that is a hang-up. Where it stays, it is an error."""
    line = Line(Address(tmp_path / "socket"), shared=True)
    transport = Transport([line], patience=LONG)
    names = b"".join(wire.pack_integer(11) + b"beadwork-no" for _ in range(6))
    init = wire.INIT + wire.pack_integer(0) + wire.pack_integer(0)
    with listener(tmp_path / "socket") as server:
        transport.poll(0.05)
        peer = server.accept()[0]
        peer.sendall(wire.STATUS + init + wire.POSDATA + wire.pack_integer(3) + names + wire.GETFORCE)
        if alive:
            with pytest.raises(RemoteProtocolError, match="cannot be opened"):
                until(transport, HangUp)
        else:
            peer.shutdown(socket.SHUT_WR)
            assert HangUp(0) in until(transport, HangUp)
            assert line.why.startswith("i-PI hung up")
        transport.close()
        peer.close()


def test_a_large_reply_does_not_keep_the_other_connection_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """i-PI reads a reply, asks that connection for READY, and only then reads the next reply, which no buffer holds."""
    monkeypatch.setattr(
        "beadwork.ipi.transport.SEND_BUFFER_BYTES", 4096
    )  # what a stock kernel allows is a few hundred kilobytes
    atoms = 5000
    line = Line(Address(tmp_path / "socket"), wanted=2, atoms=atoms)
    transport = Transport([line], patience=LONG)
    init = wire.INIT + wire.pack_integer(0) + wire.pack_integer(0)
    body = np.eye(3).tobytes() + np.eye(3).tobytes() + wire.pack_integer(atoms) + np.zeros((atoms, 3)).tobytes()
    reply = ForceReady(np.zeros(1), np.zeros((1, atoms, 3)), np.zeros((1, 3, 3)), [b""])
    length = len(wire.Single().forceready(reply))
    read: list[int] = []

    def take(end: socket.socket, count: int) -> None:
        while count and (data := end.recv(count)):
            count -= len(data)
        read.append(count)

    def ipi(one: socket.socket, two: socket.socket) -> None:
        take(one, length)
        one.sendall(wire.STATUS)
        take(one, wire.HEADER)
        take(two, length)

    with listener(tmp_path / "socket") as server:
        ends = []
        for _ in range(2):
            transport.poll(0.05)
            ends.append(server.accept()[0])
            ends[-1].settimeout(LONG)
            ends[-1].sendall(wire.STATUS)
            until(transport, Status)
            assert ends[-1].recv(wire.HEADER) == wire.NEEDINIT
        for end in ends:
            thread = threading.Thread(target=end.sendall, args=(init + wire.POSDATA + body + wire.GETFORCE,))
            thread.start()
            until(transport, PosData)
            thread.join()
        thread = threading.Thread(target=ipi, args=tuple(ends))
        thread.start()
        sent: list[tuple[Peer, Incoming]] = []
        for peer in line.peers:
            peer.machine.answer(reply)
            transport.advance(peer, sent)
        begin = time.monotonic()
        while transport.sending or thread.is_alive():
            sent += transport.poll(0.05)
            assert time.monotonic() - begin < LONG
        thread.join()
        assert read == [0, 0, 0]
        for end in ends:
            end.close()
        transport.close()


def test_a_reply_that_nobody_reads_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An i-PI that takes nothing of a reply costs its connection after a while, and not the server."""
    monkeypatch.setattr("beadwork.ipi.transport.SEND_BUFFER_BYTES", 4096)
    monkeypatch.setattr("beadwork.ipi.transport.SEND_TIMEOUT_SECONDS", 0.3)
    transport = Transport([Line(Address(tmp_path / "socket"))], patience=LONG)
    with listener(tmp_path / "socket") as server:
        transport.poll(0.05)
        end = server.accept()[0]
        end.sendall(wire.STATUS)
        until(transport, Status)
        (peer,) = transport.lines[0].peers
        peer.unsent, peer.taken_at = memoryview(bytes(1 << 24)), time.monotonic()
        transport.send(peer)
        assert transport.sending == [peer]
        assert HangUp(0) in until(transport, HangUp)
        assert transport.lines[0].why.startswith("i-PI did not take the reply")
        end.close()
        transport.close()


def test_a_word_that_came_while_we_computed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """i-PI has spoken, and we were busy for longer than the patience: its word is read before its silence is judged."""
    monkeypatch.setattr("beadwork.ipi.transport.HANDSHAKE_SECONDS", 0.2)
    transport = Transport([Line(Address(tmp_path / "socket"))], patience=0.0)
    with listener(tmp_path / "socket") as server:
        transport.poll(0.0)
        end = server.accept()[0]
        end.sendall(wire.STATUS)
        time.sleep(0.3)
        assert [event for _, event in transport.poll(0.0)] == [Status()]
        end.close()
        transport.close()


def test_patience_begins_with_the_first_dial(tmp_path: Path) -> None:
    """Models may take longer to load than the patience lasts: i-PI is waited for all the same."""
    line = Line(Address(tmp_path / "nobody"))
    time.sleep(0.3)
    transport = Transport([line], patience=0.2)
    assert transport.poll(0.0) == []
    transport.close()


@pytest.mark.parametrize("port", ["0", "65536", "100000000000000000000"])
def test_a_port_that_is_none_is_refused_at_once(tmp_path: Path, port: str) -> None:
    """It is said of the input and its forcefield, and is neither a traceback nor waited for."""
    inputs = Path(__file__).parents[2] / "inputs" / "water-inet"
    shutil.copy(inputs / "init.xyz", tmp_path)
    text, count = re.subn(r"<port>\d+</port>", f"<port>{port}</port>", (inputs / "input.xml").read_text())
    assert count == 1
    (tmp_path / "input.xml").write_text(text)
    simulation = read_simulation(tmp_path / "input.xml")
    with pytest.raises(SimulationError, match=rf"the port {port} of .* is none; give one from 1 to 65535"):
        address_of(simulation, simulation.sockets[0])


@pytest.mark.parametrize("host", ["a..b", ".", "x" * 300])
def test_what_can_be_no_machines_name_is_refused_at_once(host: str) -> None:
    """Python's resolver raises for it what is no error of the system's; it is `--host` that has to be mended."""
    simulation = read_simulation(Path(__file__).parents[2] / "inputs" / "water-inet" / "input.xml")
    with pytest.raises(ConfigError, match=r"is no name of a machine .*; give another with --host"):
        address_of(simulation, simulation.sockets[0], host)
    for good in ("node-7.cluster", "10.0.0.7", "::1", "münchen.example"):
        assert address_of(simulation, simulation.sockets[0], good).host == good
