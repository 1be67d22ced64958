"""A small process that closes the connections of a server that was killed.

The kernel resets a connection whose owner dies with bytes unread, and i-PI 3.3.1 does not survive that: the reset ends
its polling thread, and it waits for ever. So this process keeps a copy of every connection's file descriptor, and when
the server is gone it closes them cleanly. It is run as a script, and needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

#: bytes of a connection's name, which is the server's descriptor as a number
NAME_BYTES = 8
#: seconds that the process gets to end by itself before it is killed
EXIT_TIMEOUT_SECONDS = 2.0


def hang_up(sock: socket.socket) -> None:
    """Close a connection so that the peer reads an end of file, and never a reset, whatever it has sent."""
    with contextlib.suppress(OSError):  # the peer may be gone already
        sock.shutdown(socket.SHUT_RDWR)  # from here on nothing more can arrive
        sock.setblocking(False)
        while sock.recv(1 << 20):  # bytes that are left unread at close() would make the kernel send a reset
            pass
    sock.close()


class FdKeeper:
    """The server's end of the process. It never waits long for it: `lost` says when it must be replaced."""

    def __init__(self) -> None:
        """Start the process. Raises OSError."""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._full = False  # the process has stopped reading, and the channel's buffer is full
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__],  # without site packages it starts faster
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # a signal to the server's process group (Ctrl-C) must not end it
                    cwd="/",  # it must not keep a folder or a file system in use
                )
            except OSError:
                self._channel.close()
                raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def hold(self, sock: socket.socket) -> None:
        """Give the process a copy of a connection."""
        self._send(sock, [sock.fileno()])

    def release(self, sock: socket.socket) -> None:
        """Announce that a connection is about to be closed here."""
        self._send(sock, [])

    def lost(self) -> str | None:
        """Why the process cannot close connections any more; None while it can."""
        if (code := self._process.poll()) is not None:
            return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._full:
            return "has stopped reading"
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self._process.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return f"was stopped by signal {os.WSTOPSIG(status)}"
            if pid:  # it ended between the two checks; our waitpid took its status, so `Popen` cannot
                self._process.returncode = os.waitstatus_to_exitcode(status)
                return self.lost()
        return None

    def close(self) -> None:
        """End the process; it is killed where it does not end by itself."""
        self._channel.close()
        try:
            self._process.wait(EXIT_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once, without any connection noticing."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _send(self, sock: socket.socket, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._channel, [_name(sock)], descriptors)
        except BlockingIOError:
            self._full = True
        except OSError:
            pass  # it is gone, which `lost` will report


def _name(sock: socket.socket) -> bytes:
    return sock.fileno().to_bytes(NAME_BYTES, "little")


def watch(channel: socket.socket) -> None:
    """Keep descriptors that are sent and close those that are named, until the server is gone; then hang up all."""
    held: dict[bytes, socket.socket] = {}
    while True:
        name, descriptors, _, _ = socket.recv_fds(channel, NAME_BYTES, 1)
        if not name:  # end of file: every copy of the server's end is closed, so the server is gone
            break
        if name in held:  # without shutdown: the server still uses this connection
            held.pop(name).close()
        for descriptor in descriptors:
            held[name] = socket.socket(fileno=descriptor)
    for sock in held.values():
        hang_up(sock)


if __name__ == "__main__":
    watch(socket.socket(fileno=os.dup(0)))
