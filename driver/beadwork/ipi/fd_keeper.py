"""A small process that hangs up for a server that was killed.

The kernel resets a connection whose owner dies with bytes unread, and i-PI 3.3.1 does not survive that: the reset ends
its polling thread, and it waits for ever. So this process holds a copy of every connection, and when the server is gone
it ends them in order. It is run as a file of its own, and needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

#: bytes that name a connection
NAME = 8
#: seconds that the process gets to end by itself
FAREWELL = 2.0


def hang_up(sock: socket.socket) -> None:
    """Close a connection so that the peer reads an end of file, and never a reset, whatever it has sent."""
    with contextlib.suppress(OSError):  # the peer may be gone already
        sock.shutdown(socket.SHUT_RDWR)  # from here on nothing more can come
        sock.setblocking(False)
        while sock.recv(1 << 20):
            pass
    sock.close()


class Guard:
    """The server's end. It waits for the process nowhere for long: `lost` says when another has to take its place."""

    def __init__(self) -> None:
        """Start the process. Raises OSError."""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._full = False  # it has stopped reading
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # what kills the server's group, or interrupts it, is not meant for it
                    cwd="/",
                )
            except OSError:
                self._channel.close()
                raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def hold(self, sock: socket.socket) -> None:
        """Give the process a copy of a connection."""
        self._say(sock, [sock.fileno()])

    def release(self, sock: socket.socket) -> None:
        """Say that a connection is about to be closed here."""
        self._say(sock, [])

    def lost(self) -> str | None:
        """What became of the process, where it can hang up for nobody any more; None while it can."""
        if (code := self._process.poll()) is not None:
            return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._full:
            return "has stopped reading"
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self._process.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return f"was stopped by signal {os.WSTOPSIG(status)}"
            if pid:  # it ended between the two looks, and `Popen` cannot ask again
                self._process.returncode = os.waitstatus_to_exitcode(status)
                return self.lost()
        return None

    def close(self) -> None:
        """End the process; it is killed where it does not end by itself."""
        self._channel.close()
        try:
            self._process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once, without any connection noticing."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _say(self, sock: socket.socket, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._channel, [_name(sock)], descriptors)
        except BlockingIOError:
            self._full = True
        except OSError:
            pass  # it is gone, which `lost` finds


def _name(sock: socket.socket) -> bytes:
    return sock.fileno().to_bytes(NAME, "little")


def watch(channel: socket.socket) -> None:
    """Hold what is given and release what is named, until the other end is gone; then hang up."""
    held: dict[bytes, socket.socket] = {}
    while True:
        name, descriptors, _, _ = socket.recv_fds(channel, NAME, 1)
        if not name:
            break
        if name in held:
            held.pop(name).close()
        for descriptor in descriptors:
            held[name] = socket.socket(fileno=descriptor)
    for sock in held.values():
        hang_up(sock)


if __name__ == "__main__":
    watch(socket.socket(fileno=os.dup(0)))
