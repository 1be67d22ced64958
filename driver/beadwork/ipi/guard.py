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


def hang_up(sock: socket.socket) -> None:
    """Close a connection so that the peer reads an end of file, and never a reset, whatever it has sent."""
    with contextlib.suppress(OSError):  # the peer may be gone already
        sock.shutdown(socket.SHUT_RDWR)  # from here on nothing more can come
        sock.setblocking(False)
        while sock.recv(1 << 20):
            pass
    sock.close()


class Guard:
    """The server's end. Where the process is gone, everything works as if it had never been there."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what kills the server's group, or interrupts it, is not meant for it
                cwd="/",
            )

    def hold(self, sock: socket.socket) -> None:
        """Give the process a copy of a connection."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._channel, [_name(sock)], [sock.fileno()])

    def release(self, sock: socket.socket) -> None:
        """Say that a connection is about to be closed here."""
        with contextlib.suppress(OSError):
            self._channel.sendall(_name(sock))

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        self._process.wait()


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
