"""Sockets, and nothing else that knows of them: dial i-PI, read, send, dial again.

A `Line` is one forcefield's address and the connections to it. Connections are dialled one after the other, each
when the one before has shaken hands, so that i-PI's short queue of waiting clients (`slots`) never fills.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from beadwork.errors import ConnectionLost
from beadwork.ipi.fd_keeper import Guard, hang_up
from beadwork.ipi.messages import Exit, HangUp, Incoming
from beadwork.ipi.peer_identity import check_port, check_unix, folder, process
from beadwork.ipi.protocol import Machine
from beadwork.ipi.shm import SegmentGone
from beadwork.ipi.simulation import Simulation, Socket

RECEIVE = 1 << 20
#: bytes of a reply that wait in the kernel, so that sending it does not wait for i-PI to read
SEND = 1 << 22
#: seconds in which i-PI must read something of a reply that waits
SEND_TIMEOUT = 30.0
#: seconds in which an i-PI that has said EXIT may take us back (it says so to a client that it found too slow)
GRACE = 1.0
#: seconds that an i-PI which has taken a connection always gets for its first word
HANDSHAKE = 5.0
NEVER = float("inf")
#: seconds between two guards that are started, the second time, and at most
GUARD, GUARD_MOST = 1.0, 600.0
RETRY = 0.05
RETRY_MOST = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where one forcefield of i-PI listens: a unix socket's path, or a host and port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.path else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether it is a port of this machine by its name."""
        return self.path is None and self.host in ("localhost", "127.0.0.1", "::1")


def address_of(simulation: Simulation, socket: Socket, host: str | None = None) -> Address:
    """Where i-PI will listen. host: of an inet address that cannot be dialled as it stands."""
    if socket.path is not None:
        return Address(path=simulation.directory / socket.path)  # i-PI binds it in its own folder
    # i-PI binds the address: one that means 'every interface' is dialled here
    return Address(
        host=host or (socket.address if socket.address not in ("", "0.0.0.0") else "localhost"), port=socket.port
    )


@dataclass(eq=False)
class Peer:
    """One connection: its socket and its conversation."""

    line: Line
    sock: socket.socket
    machine: Machine
    met: bool = False  # i-PI has spoken
    since: float = field(default_factory=time.monotonic)
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))  # what the kernel has not taken yet
    taken_at: float = 0.0  # when the kernel last took some of it

    def send(self) -> None:
        """Give the kernel what the conversation owes, as much as it takes now. Raises OSError."""
        if self.machine.owes:
            data = self.machine.data_to_send()
            if not self.unsent:
                self.taken_at = time.monotonic()
            self.unsent = memoryview(bytes(self.unsent) + data if self.unsent else data)
        try:
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
                self.taken_at = time.monotonic()
        except BlockingIOError:
            if time.monotonic() - self.taken_at > SEND_TIMEOUT:
                raise TimeoutError(f"nothing for {SEND_TIMEOUT:g} s") from None

    def process(self) -> int | None:
        """i-PI's process; None where that cannot be told (on another machine)."""
        return process(self.sock)

    def directory(self) -> Path | None:
        """i-PI's working directory, where it looks for EXIT; None where that cannot be told (on another machine)."""
        return folder(self.sock)


@dataclass(eq=False)
class Line:
    """All connections to one forcefield. wanted: how many; shared: mode 'shm'; atoms: what the file promises.

    pid: of the i-PI that must listen there; None where any of this user's may.
    """

    address: Address
    wanted: int = 1
    shared: bool = False
    atoms: int | None = None
    pid: int | None = None
    peers: list[Peer] = field(default_factory=list)
    lost_at: float = field(default_factory=time.monotonic)  # since when nobody there has spoken to us
    dial_at: float = 0.0
    pause: float = RETRY
    exited: bool = False  # i-PI has said EXIT and not spoken since
    why: str = "not tried yet"

    @property
    def dials(self) -> bool:
        """Whether a connection is missing and the last one has shaken hands."""
        return len(self.peers) < self.wanted and self.dial_at != NEVER and all(peer.met for peer in self.peers)

    @property
    def met(self) -> bool:
        """Whether any connection has shaken hands."""
        return any(peer.met for peer in self.peers)


def stale(path: Path) -> bool:
    """Whether a unix socket file lies there that nobody listens on (i-PI killed with -9 leaves one)."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(dialled(path)) == errno.ECONNREFUSED


def dialled(path: Path) -> str:
    """The shorter name of a socket file: the kernel takes 107 bytes, and i-PI may have bound it from its own folder."""
    return min(str(path), os.path.relpath(path), key=lambda name: len(os.fsencode(name)))


def held(address: Address) -> bool:
    """Whether an i-PI that is started now would find its address taken."""
    if address.path is not None:
        return address.path.exists()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as i-PI does
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        except OverflowError:  # no port has this number, as i-PI will say
            return False
    return False


def _connect(address: Address, pid: int | None) -> socket.socket:
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND)
            sock.setblocking(False)
            sock.connect(dialled(address.path))
            check_unix(sock, address.path, pid)
        except (OSError, ConnectionLost):
            sock.close()
            raise
        return sock
    check_port(address.port, pid)
    sock = socket.create_connection((address.host, address.port), timeout=2.0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


class Transport:
    """Every line of one server.

    patience: seconds without an i-PI that speaks before a line is given up. tell: called with what a user should know.
    """

    def __init__(
        self, lines: list[Line], patience: float = 60.0, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.lines = lines
        self._patience = patience
        self._tell = tell
        now = time.monotonic()  # loading the models may have taken longer than the patience
        for line in lines:
            line.lost_at = now
        self._selector = selectors.DefaultSelector()
        self._closed: list[Peer] = []
        self._guard: Guard | None = None
        self._guard_at, self._guard_pause = 0.0, GUARD  # when the next one may be started

    def poll(self, timeout: float | None) -> list[tuple[Peer, Incoming]]:
        """Wait for at most `timeout` seconds (None: until something comes) and return what has come.

        A connection that has ended comes as Exit or HangUp. Raises ConnectionLost when nobody on a line has spoken for
        longer than the patience, or another user listens there, RemoteProtocolError when a peer says what i-PI would
        not.
        """
        now = time.monotonic()
        events: list[tuple[Peer, Incoming]] = []
        for line in self.lines:
            self._dial(line, now)
            wait = max(0.0, line.dial_at - now) if line.dials else self._silence(line, now)
            if wait is not None:
                timeout = wait if timeout is None else min(timeout, wait)
        if any(line.peers for line in self.lines):
            self._keep_guard(now)
        if self.sending:
            timeout = SEND_TIMEOUT if timeout is None else min(timeout, SEND_TIMEOUT)
        for key, mask in self._selector.select(timeout):
            if mask & selectors.EVENT_WRITE and key.data in key.data.line.peers:
                self.send(key.data)
            if mask & selectors.EVENT_READ:
                self._read(key.data, events)
        now = time.monotonic()
        for peer in self.sending:
            if now - peer.taken_at > SEND_TIMEOUT:
                self.send(peer)
        for line in self.lines:  # only now, since its first word may have lain in the socket while we computed
            if self._silence(line, now) == 0.0:
                self._give_up_silent(line, now)
        events += [(peer, HangUp(0)) for peer in self._closed]
        self._closed.clear()
        return events

    @property
    def sending(self) -> list[Peer]:
        """Those that have not taken all of what they were sent."""
        return [peer for line in self.lines for peer in line.peers if peer.unsent]

    @property
    def finished(self) -> bool:
        """Every line was told EXIT by an i-PI that is no longer there."""
        return all(line.dial_at == NEVER for line in self.lines)

    def send(self, peer: Peer) -> bool:
        """Send what a peer is owed; False, and the connection is dropped, when it cannot be.

        What the kernel has no room for goes out in `poll`, which answers the other connections meanwhile: i-PI does not
        read one reply before those that it has asked for first.
        """
        before = bool(peer.unsent)
        try:
            peer.send()
        except OSError as error:
            self.drop(peer, f"i-PI did not take the reply ({error})")
            self._closed.append(peer)
            return False
        if bool(peer.unsent) != before:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
            self._selector.modify(peer.sock, wanted, peer)
        return True

    def drop(self, peer: Peer, why: str) -> None:
        """Close one connection."""
        line = peer.line
        if peer in line.peers:
            line.peers.remove(peer)
            self._selector.unregister(peer.sock)
        peer.machine.close()
        if self._guard is not None:
            self._guard.release(peer.sock)
        hang_up(peer.sock)
        line.why = why
        now = time.monotonic()
        if peer.met:
            line.dial_at, line.pause, line.lost_at = now, RETRY, now
        elif line.dial_at != NEVER:  # taken and let go without a word: not at once again
            line.dial_at, line.pause = now + line.pause, min(2 * line.pause, RETRY_MOST)

    def close(self) -> None:
        """Close everything."""
        for line in self.lines:
            for peer in list(line.peers):
                self.drop(peer, "closed by us")
        self._selector.close()
        if self._guard is not None:
            self._guard.close()

    def _dial(self, line: Line, now: float) -> None:
        if not line.dials or now < line.dial_at:
            return
        try:
            sock = _connect(line.address, line.pid)
        except OSError as error:
            line.why = self._explain(line.address, error)
            line.dial_at, line.pause = now + line.pause, min(2 * line.pause, RETRY_MOST)
            gone = error.errno in (errno.ENOENT, errno.ECONNREFUSED)
            self._give_up(line, now, gone)
            return
        peer = Peer(line, sock, Machine(shared=line.shared, atoms=line.atoms))
        line.peers.append(peer)
        if self._guard is not None:
            self._guard.hold(sock)
        self._selector.register(sock, selectors.EVENT_READ, peer)

    def _keep_guard(self, now: float) -> None:
        """Have a guard that can hang up for every connection there is; one that cannot any more is replaced."""
        if now < self._guard_at:
            return
        why = None
        if self._guard is not None:
            if (why := self._guard.lost()) is None:
                return
            self._guard.kill()
            self._guard = None
        self._guard_at, self._guard_pause = now + self._guard_pause, min(2 * self._guard_pause, GUARD_MOST)
        try:
            self._guard = Guard()
        except OSError as error:
            self._tell(
                f"the process that hangs up for a killed server cannot be started ({error}): should this server be "
                "killed now, i-PI would wait for ever; it is tried again"
            )
            return
        for line in self.lines:
            for peer in line.peers:
                self._guard.hold(peer.sock)
        if why:
            self._tell(f"the process that hangs up for a killed server {why}; another one has taken its place")

    def _silence(self, line: Line, now: float) -> float | None:
        """How much longer a connection that i-PI has taken may wait for its first word; None where none does."""
        if line.met or not line.peers:
            return None
        return max(0.0, max(self._patience, HANDSHAKE) - (now - line.peers[0].since))

    def _give_up_silent(self, line: Line, now: float) -> None:
        """An i-PI whose polling thread has died still takes connections, for the kernel does that, and never speaks."""
        waited = now - line.peers[0].since
        if not line.exited:
            raise ConnectionLost(
                f"i-PI at {line.address} took the connection and has not shaken hands for {waited:.0f} s: its polling "
                "thread has died (its log says of what), or it waits for others",
                "end it and start it again from its RESTART, or wait longer with --patience",
            )
        for peer in list(line.peers):
            self.drop(peer, "i-PI said EXIT")
        line.dial_at = NEVER

    def _give_up(self, line: Line, now: float, gone: bool) -> None:
        if line.peers:
            return
        if line.exited:
            if gone or now - line.lost_at >= GRACE:
                line.dial_at = NEVER
        elif now - line.lost_at >= self._patience:
            elsewhere = "name its machine with --host, " if line.address.local else ""
            if line.address.path is not None:
                elsewhere = "give its -S as --sockets-prefix if it has one, "
            raise ConnectionLost(
                f"no i-PI at {line.address} for {self._patience:g} s ({line.why})",
                f"start i-PI, {elsewhere}or wait longer with --patience",
            )

    @staticmethod
    def _explain(address: Address, error: OSError) -> str:
        if error.errno == errno.ENOENT:
            return "no such socket file yet"
        if error.errno == errno.ECONNREFUSED:
            if address.path:
                return "nobody listens on the socket file, which a killed i-PI may have left: remove it"
            return "nobody listens on that port"
        if error.errno == errno.EAGAIN:
            return "i-PI has no room for another client at the moment"
        return str(error)

    def _read(self, peer: Peer, events: list[tuple[Peer, Incoming]]) -> None:
        if peer not in peer.line.peers:
            return  # dropped by an earlier event of the same round
        try:
            data = peer.sock.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a connection that breaks is one that ends
        peer.machine.receive(data)
        self.advance(peer, events)

    @staticmethod
    def _next_event(peer: Peer) -> Incoming | None:
        try:
            return peer.machine.next_event()
        except SegmentGone:
            # i-PI removes its shared memory when it lets a connection go, perhaps before we have read what it sent
            if _ended(peer.sock, GRACE):
                return HangUp(0)
            raise

    def advance(self, peer: Peer, events: list[tuple[Peer, Incoming]]) -> None:
        """Let a conversation go on as far as its bytes reach, sending what it owes on the way."""
        while (event := self._next_event(peer)) is not None:
            events.append((peer, event))
            if isinstance(event, (Exit, HangUp)):
                # i-PI still accepts for a moment after it has said EXIT: a hang-up before its first word is that
                peer.line.exited = isinstance(event, Exit) or (peer.line.exited and not peer.met)
                self.drop(peer, _farewell(event) if peer.met else "i-PI, or what listens there, hung up without a word")
                if not peer.met:
                    self._give_up(peer.line, time.monotonic(), gone=False)
                return
            peer.met = True
            peer.line.exited, peer.line.pause = False, RETRY
        if peer.machine.owes:
            self.send(peer)


def _ended(sock: socket.socket, seconds: float) -> bool:
    """Whether the other end hangs up within this time; whatever else it sends is let go."""
    until = time.monotonic() + seconds
    try:
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(RECEIVE):
                return True
    except TimeoutError:
        pass
    except OSError:
        return True  # broken is ended
    return False


def _farewell(event: Exit | HangUp) -> str:
    if isinstance(event, Exit):
        return "i-PI said EXIT"
    return f"i-PI hung up {event.held} bytes into a message" if event.held else "i-PI hung up"
