"""Sockets: connect to i-PI, read, send, connect again. No other module opens one.

A `Line` is one forcefield's address and the connections to it. Connections are opened one after the other, each when
the one before has finished its handshake, so that i-PI's short queue of waiting clients (`slots`, 1 to 5) never fills.
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

from beadwork.errors import ConfigError, ConnectionLost, SimulationError
from beadwork.ipi.fd_keeper import FdKeeper, hang_up
from beadwork.ipi.messages import Exit, HangUp, Incoming
from beadwork.ipi.peer_identity import check_port, check_unix, peer_folder, peer_process
from beadwork.ipi.protocol import Machine
from beadwork.ipi.shm import SegmentGone
from beadwork.ipi.simulation import Simulation, Socket

RECEIVE_BYTES = 1 << 20
#: of a unix socket: a reply fits into the kernel, so that sending it does not wait for i-PI to read
SEND_BUFFER_BYTES = 1 << 22
#: seconds within which i-PI must read some bytes of a reply that waits
SEND_TIMEOUT_SECONDS = 30.0
#: seconds after EXIT within which i-PI may accept us again (it sends EXIT to a client that it found too slow, too)
EXIT_GRACE_SECONDS = 1.0
#: seconds that i-PI always gets for its first message on an accepted connection, whatever --patience is
HANDSHAKE_SECONDS = 5.0
#: as a time to dial at
NEVER = float("inf")
#: seconds until another fd keeper is started: at first, and after doubling at most
KEEPER_RETRY_SECONDS, KEEPER_RETRY_MAX_SECONDS = 1.0, 600.0
RETRY_SECONDS = 0.05
RETRY_MAX_SECONDS = 1.0


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
    """Where i-PI will listen. host: replaces an inet address that cannot be reached as it is written in the XML.

    Raises SimulationError for a port that is none, ConfigError for what can be no machine's name.
    """
    if socket.path is not None:
        return Address(path=simulation.directory / socket.path)  # i-PI binds it in its own folder
    # i-PI binds this address: 'every interface' is no address to connect to
    if not 0 < socket.port <= 65535:
        raise SimulationError(
            f"the port {str(socket.port)[:30]} of the forcefield {socket.name!r} in {simulation.path} is none",
            "give one from 1 to 65535",
        )
    name = host or (socket.address if socket.address not in ("", "0.0.0.0") else "localhost")
    try:
        name.encode("idna")  # as the system's resolver gets it
    except UnicodeError as error:
        raise ConfigError(f"{name[:80]!r} is no name of a machine ({error})", "give another with --host") from error
    return Address(host=name, port=socket.port)


@dataclass(eq=False)
class Peer:
    """One connection: its socket and its conversation."""

    line: Line
    sock: socket.socket
    machine: Machine
    met: bool = False  # i-PI has sent its first message
    since: float = field(default_factory=time.monotonic)
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))  # what the kernel has not taken yet
    taken_at: float = 0.0  # when the kernel last took some of it

    def send(self) -> None:
        """Pass as much to the kernel as it accepts now. Raises OSError."""
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
            if time.monotonic() - self.taken_at > SEND_TIMEOUT_SECONDS:
                raise TimeoutError(f"nothing for {SEND_TIMEOUT_SECONDS:g} s") from None

    def process(self) -> int | None:
        """i-PI's process id; None where it is not known (on another machine)."""
        return peer_process(self.sock)

    def directory(self) -> Path | None:
        """i-PI's working directory, where it looks for EXIT; None where it is not known (on another machine)."""
        return peer_folder(self.sock)


@dataclass(eq=False)
class Line:
    """All connections to one forcefield. wanted: how many; shared: mode 'shm'; atoms: the number in the file.

    pid: of the i-PI that must listen there; None where any i-PI of this user may.
    """

    address: Address
    wanted: int = 1
    shared: bool = False
    atoms: int | None = None
    pid: int | None = None
    peers: list[Peer] = field(default_factory=list)
    lost_at: float = field(default_factory=time.monotonic)  # since when no i-PI there has sent anything
    dial_at: float = 0.0
    pause: float = RETRY_SECONDS
    exited: bool = False  # i-PI has sent EXIT and nothing since
    why: str = "not tried yet"

    @property
    def dials(self) -> bool:
        """Whether a connection is missing and all others have finished their handshake."""
        return len(self.peers) < self.wanted and self.dial_at != NEVER and all(peer.met for peer in self.peers)

    @property
    def met(self) -> bool:
        """Whether any connection has finished its handshake."""
        return any(peer.met for peer in self.peers)


def is_stale(path: Path) -> bool:
    """Whether there is a unix socket file on which nobody listens (i-PI killed with -9 leaves one)."""
    # the kernel alone knows: connecting to a file without a listener is refused
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(dial_name(path)) == errno.ECONNREFUSED


def dial_name(path: Path) -> str:
    """The shorter name of a socket file, absolute or relative: the kernel accepts 107 bytes at most.

    i-PI may have bound a name that is short in its own working directory and too long from ours.
    """
    return min(str(path), os.path.relpath(path), key=lambda name: len(os.fsencode(name)))


def address_in_use(address: Address) -> bool:
    """Whether an i-PI that is started now would find its address in use."""
    if address.path is not None:
        return address.path.exists()
    with socket.socket() as probe:
        # as i-PI does: else a port in TIME_WAIT would count as taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _connect(address: Address, pid: int | None) -> socket.socket:
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            sock.setblocking(False)
            sock.connect(dial_name(address.path))
            check_unix(sock, address.path, pid)
        except (OSError, ConnectionLost):
            sock.close()
            raise
        return sock
    check_port(address.port, pid)
    sock = socket.create_connection((address.host, address.port), timeout=2.0)
    # Nagle's algorithm would hold back each 12-byte header until the last one is acknowledged
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


class Transport:
    """Every line of one server.

    patience: seconds without any message of i-PI before a line is given up. tell: called with messages for the user.
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
        self._keeper: FdKeeper | None = None
        self._keeper_at, self._keeper_pause = 0.0, KEEPER_RETRY_SECONDS  # when the next one may be started

    def poll(self, timeout: float | None) -> list[tuple[Peer, Incoming]]:
        """Wait for at most `timeout` seconds (None: until something comes) and return the messages that have come.

        The end of a connection comes as Exit or HangUp. Raises ConnectionLost when a line had no message for longer
        than patience, or another user listens there, RemoteProtocolError when a peer sends what i-PI would not.
        """
        now = time.monotonic()
        events: list[tuple[Peer, Incoming]] = []
        for line in self.lines:
            self._dial(line, now)
            wait = max(0.0, line.dial_at - now) if line.dials else self._silence(line, now)
            if wait is not None:
                timeout = wait if timeout is None else min(timeout, wait)
        if any(line.peers for line in self.lines):
            self._ensure_keeper(now)
        if self.sending:
            timeout = SEND_TIMEOUT_SECONDS if timeout is None else min(timeout, SEND_TIMEOUT_SECONDS)
        for key, mask in self._selector.select(timeout):
            if mask & selectors.EVENT_WRITE and key.data in key.data.line.peers:
                self.send(key.data)
            if mask & selectors.EVENT_READ:
                self._read(key.data, events)
        now = time.monotonic()
        for peer in self.sending:
            if now - peer.taken_at > SEND_TIMEOUT_SECONDS:
                self.send(peer)
        for line in self.lines:  # only after reading: the first message may have waited in the socket while we computed
            if self._silence(line, now) == 0.0:
                self._give_up_silent(line, now)
        events += [(peer, HangUp(0)) for peer in self._closed]
        self._closed.clear()
        return events

    @property
    def sending(self) -> list[Peer]:
        """Peers that have not yet read all of their reply."""
        return [peer for line in self.lines for peer in line.peers if peer.unsent]

    @property
    def finished(self) -> bool:
        """Every line had an EXIT of an i-PI that is no longer there."""
        return all(line.dial_at == NEVER for line in self.lines)

    def send(self, peer: Peer) -> bool:
        """Send a peer's reply; False, and the connection is dropped, when that fails.

        What the kernel does not accept now goes out in `poll`, together with the replies of other connections: i-PI
        reads replies in the order of its requests, so waiting for this one alone could wait for ever.
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
        if self._keeper is not None:
            self._keeper.release(peer.sock)
        hang_up(peer.sock)
        line.why = why
        now = time.monotonic()
        if peer.met:
            line.dial_at, line.pause, line.lost_at = now, RETRY_SECONDS, now
        elif line.dial_at != NEVER:  # accepted and closed without a message: not again at once
            line.dial_at, line.pause = now + line.pause, min(2 * line.pause, RETRY_MAX_SECONDS)

    def close(self) -> None:
        """Close everything."""
        for line in self.lines:
            for peer in list(line.peers):
                self.drop(peer, "closed by us")
        self._selector.close()
        if self._keeper is not None:
            self._keeper.close()

    def _dial(self, line: Line, now: float) -> None:
        if not line.dials or now < line.dial_at:
            return
        try:
            sock = _connect(line.address, line.pid)
        except OSError as error:
            line.why = self._explain(line.address, error)
            line.dial_at, line.pause = now + line.pause, min(2 * line.pause, RETRY_MAX_SECONDS)
            gone = error.errno in (errno.ENOENT, errno.ECONNREFUSED)
            self._give_up(line, now, gone)
            return
        peer = Peer(line, sock, Machine(shared=line.shared, atoms=line.atoms))
        line.peers.append(peer)
        # before the first byte is exchanged, so that a kill at any later instant finds the copy
        if self._keeper is not None:
            self._keeper.hold(sock)
        self._selector.register(sock, selectors.EVENT_READ, peer)

    def _ensure_keeper(self, now: float) -> None:
        """Have an fd keeper that holds a copy of every connection; one that failed is replaced."""
        if now < self._keeper_at:
            return
        why = None
        if self._keeper is not None:
            if (why := self._keeper.lost()) is None:
                return
            self._keeper.kill()
            self._keeper = None
        self._keeper_at, self._keeper_pause = (
            now + self._keeper_pause,
            min(2 * self._keeper_pause, KEEPER_RETRY_MAX_SECONDS),
        )
        try:
            self._keeper = FdKeeper()
        except OSError as error:
            self._tell(
                f"the process that closes the connections of a killed server cannot be started ({error}): if this "
                "server were killed now, i-PI would wait for ever; it is tried again"
            )
            return
        for line in self.lines:
            for peer in line.peers:
                self._keeper.hold(peer.sock)
        if why:
            self._tell(f"the process that closes the connections of a killed server {why}; it was replaced")

    def _silence(self, line: Line, now: float) -> float | None:
        """How much longer an accepted connection may wait for i-PI's first message; None where none waits."""
        if line.met or not line.peers:
            return None
        return max(0.0, max(self._patience, HANDSHAKE_SECONDS) - (now - line.peers[0].since))

    def _give_up_silent(self, line: Line, now: float) -> None:
        """The kernel accepts connections for an i-PI whose polling thread has died, but no message ever comes."""
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
            if gone or now - line.lost_at >= EXIT_GRACE_SECONDS:
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
            return  # dropped by an earlier event of the same poll
        try:
            data = peer.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a broken connection is handled as one that ended
        peer.machine.receive(data)
        self.advance(peer, events)

    @staticmethod
    def _next_event(peer: Peer) -> Incoming | None:
        try:
            return peer.machine.next_event()
        except SegmentGone:
            # i-PI removes its shared memory when it closes a connection, perhaps before we have read what it sent
            if _ended(peer.sock, EXIT_GRACE_SECONDS):
                return HangUp(0)
            raise

    def advance(self, peer: Peer, events: list[tuple[Peer, Incoming]]) -> None:
        """Process the messages that have arrived, and send the replies to them."""
        while (event := self._next_event(peer)) is not None:
            events.append((peer, event))
            if isinstance(event, (Exit, HangUp)):
                # after EXIT i-PI still accepts connections for a moment, and closes them without a message
                peer.line.exited = isinstance(event, Exit) or (peer.line.exited and not peer.met)
                silent = "i-PI, or what listens there, closed the connection without a message"
                self.drop(peer, _end_reason(event) if peer.met else silent)
                if not peer.met:
                    self._give_up(peer.line, time.monotonic(), gone=False)
                return
            peer.met = True
            peer.line.exited, peer.line.pause = False, RETRY_SECONDS
        if peer.machine.owes:
            self.send(peer)


def _ended(sock: socket.socket, seconds: float) -> bool:
    """Whether the other end hangs up within this time; anything that it sends is discarded."""
    until = time.monotonic() + seconds
    try:
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(RECEIVE_BYTES):
                return True
    except TimeoutError:
        pass
    except OSError:
        return True  # a reset ends it too
    return False


def _end_reason(event: Exit | HangUp) -> str:
    if isinstance(event, Exit):
        return "i-PI said EXIT"
    return f"i-PI hung up {event.held} bytes into a message" if event.held else "i-PI hung up"
