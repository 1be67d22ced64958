"""A killed server's connections end in order, whatever i-PI has sent that nobody read."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from beadwork.ipi.fd_keeper import EXIT_TIMEOUT_SECONDS, FdKeeper
from beadwork.ipi.transport import Address, Line, Transport

#: dials, says that it has, and reads nothing
PROGRAM = textwrap.dedent(
    """
    import socket, sys, time
    from beadwork.ipi.fd_keeper import FdKeeper
    family = socket.AF_INET if sys.argv[1] == "inet" else socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.connect(("127.0.0.1", int(sys.argv[2])) if sys.argv[1] == "inet" else sys.argv[2])
    if sys.argv[3] == "guarded":
        guard = FdKeeper()
        guard.hold(sock)
    sock.sendall(b"here")
    time.sleep(60)
    """
)


def killed(kind: str, guarded: str, folder: Path) -> bytes:
    """Send to a process that does not read, kill it, and return what its connection then gives."""
    listener = socket.socket(socket.AF_INET if kind == "inet" else socket.AF_UNIX)
    with listener:
        listener.bind(("127.0.0.1", 0) if kind == "inet" else str(folder / "s"))
        listener.listen(1)
        where = str(listener.getsockname()[1]) if kind == "inet" else str(folder / "s")
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, kind, where, guarded])
        try:
            listener.settimeout(60)
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(60)
                assert peer.recv(4) == b"here"
                peer.sendall(b"x" * 1000)
                child.send_signal(signal.SIGKILL)
                child.wait()
                return peer.recv(1)
        finally:
            child.kill()
            child.wait()


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_killed_server_hangs_up(kind: str, tmp_path: Path) -> None:
    """i-PI reads an end of file, as if the server had closed its connection."""
    assert killed(kind, "guarded", tmp_path) == b""


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_without_guard_the_kernel_resets(kind: str, tmp_path: Path) -> None:
    """What the guard is there for; should this ever fail, it can go."""
    with pytest.raises(ConnectionResetError):
        killed(kind, "alone", tmp_path)


#: a server that says which guard it has and what is told of it, and reads nothing once it has shaken hands
SERVER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from beadwork.ipi.transport import Address, Line, Transport
    transport = Transport([Line(Address(Path(sys.argv[1])))], tell=lambda text: print(text, flush=True))
    while not any(peer.met for line in transport.lines for peer in line.peers):
        transport.poll(0.05)
    print(transport._keeper.pid, flush=True)
    first = transport._keeper
    while transport._keeper is first:
        transport.poll(0.05)
    print("replaced", flush=True)
    time.sleep(60)
    """
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_guard_that_is_lost_is_replaced(number: signal.Signals, tmp_path: Path) -> None:
    """One that was killed, or stopped, can hang up for nobody: that is said, another holds every connection, and when
    the server is killed after that i-PI still reads an end of file and no reset."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        listener.settimeout(60)
        child = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
        with child:
            try:
                assert child.stdout is not None
                peer, _ = listener.accept()
                with peer:
                    peer.settimeout(60)
                    peer.sendall(b"STATUS".ljust(12))
                    assert peer.recv(12) == b"NEEDINIT".ljust(12)
                    os.kill(int(child.stdout.readline()), number)
                    became = "killed by signal 9" if number == signal.SIGKILL else f"stopped by signal {int(number)}"
                    assert child.stdout.readline() == (
                        f"the process that closes the connections of a killed server was {became}; it was replaced\n"
                    )
                    assert child.stdout.readline() == "replaced\n"
                    peer.sendall(b"x" * 1000)
                    child.kill()
                    child.wait()
                    assert peer.recv(1) == b""
            finally:
                child.kill()


def test_a_stopped_guard_holds_up_no_end(tmp_path: Path) -> None:
    """The server ends some seconds after its guard was stopped, and leaves no process behind."""
    guard = FdKeeper()
    os.kill(guard.pid, signal.SIGSTOP)
    begin = time.monotonic()
    guard.close()
    assert EXIT_TIMEOUT_SECONDS <= time.monotonic() - begin < EXIT_TIMEOUT_SECONDS + 10
    with pytest.raises(ProcessLookupError):
        os.kill(guard.pid, 0)


def test_a_guard_that_does_not_read_is_never_waited_for() -> None:
    """Connections that come and go while it is stopped fill the channel to it: that blocks no answer, and is a guard
    that is lost."""
    guard = FdKeeper()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.kill(guard.pid, signal.SIGSTOP)
        for _ in range(100_000):
            guard.hold(ours)
            guard.release(ours)
            if guard._full:
                break
        assert guard.lost() == "has stopped reading"
    guard.kill()


def test_what_is_released_is_let_go() -> None:
    """A copy that the guard kept would hold the connection open, and a descriptor for each that ever was."""
    guard = FdKeeper()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(20)
        guard.hold(ours)
        guard.release(ours)
        ours.close()  # and no more, as where the kernel closes it
        assert theirs.recv(1) == b""
        assert guard.lost() is None
    guard.close()


def test_no_process_to_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of processes i-PI is served all the same, without a guard; it is tried again."""

    def refused(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    told: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        transport = Transport([Line(Address(tmp_path / "s"))], tell=told.append)
        with monkeypatch.context() as patch:
            patch.setattr("beadwork.ipi.fd_keeper.subprocess.Popen", refused)
            transport.poll(0.05)
        (said,) = told
        assert "cannot be started ([Errno 11] Resource temporarily unavailable)" in said
        assert transport._keeper is None
        transport._keeper_at = 0.0
        transport.poll(0.05)
        assert transport._keeper is not None
        assert len(told) == 1
        transport.close()
