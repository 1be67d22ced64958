"""A killed server's connections end in order, whatever i-PI has sent that nobody read."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

#: dials, says that it has, and reads nothing
PROGRAM = textwrap.dedent(
    """
    import socket, sys, time
    from beadwork.ipi.guard import Guard
    family = socket.AF_INET if sys.argv[1] == "inet" else socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.connect(("127.0.0.1", int(sys.argv[2])) if sys.argv[1] == "inet" else sys.argv[2])
    if sys.argv[3] == "guarded":
        guard = Guard()
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
