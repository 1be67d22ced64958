"""Whose process is at the other end: answers for another simulation are worse than none.

The kernel tells: of a unix socket by its credentials, of a port of this machine, on Linux, by /proc. Where it does not,
nothing is refused.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from beadwork.errors import ConnectionLost

#: of a listening socket in /proc/net/tcp, and of one that is connected
LISTENS, CONNECTED = "0A", "01"
#: i-PI's program, and its package (`python -m ipi`)
PROGRAMS = {"i-pi", "i-pi.py", "ipi"}


def credentials(sock: socket.socket) -> tuple[int | None, int] | None:
    """Process and user at the other end of a unix socket; None where nobody can say, as of a process in a container."""
    if sock.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid or None, uid  # every process that has no number here is 0


def process(sock: socket.socket) -> int | None:
    """The i-PI at the other end of a connection; None where that cannot be told, as on other machines."""
    found = credentials(sock)
    return found[0] if found else _at_port(sock) if sock.family == socket.AF_INET else None


def folder(sock: socket.socket) -> Path | None:
    """Where the i-PI at the other end of a connection works; None where that cannot be told."""
    pid = process(sock)
    try:
        return None if pid is None else Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def _at_port(sock: socket.socket) -> int | None:
    """The i-PI of this user that holds the other end of a connection within this machine; a tunnel's end is none."""
    try:
        # as the other end has them: its own address first
        ends = " ".join(f"{_hex(host)}:{port:04X}" for host, port in (sock.getpeername(), sock.getsockname()))
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    except OSError:
        return None
    names = {f"socket:[{row[9]}]" for row in rows if " ".join(row[1:3]) == ends and row[3] == CONNECTED}
    for process in Path("/proc").glob("[0-9]*") if names else ():
        with suppress(OSError):  # another user's, or ended meanwhile
            words = (process / "cmdline").read_text(errors="replace").split("\0")
            is_ipi = bool(PROGRAMS & {Path(word).name for word in words})
            if is_ipi and names & _held(process):
                return int(process.name)
    return None


def _hex(host: str) -> str:
    """An address as /proc/net/tcp has it: the bytes of the network as a number of this machine."""
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"


def check_unix(sock: socket.socket, path: Path, pid: int | None) -> None:
    """Raise ConnectionLost where another user listens at `path`, and OSError where a process other than `pid` does.

    Anybody can listen on a name in /tmp: only an i-PI of this user, or of root, is spoken to.
    """
    found = credentials(sock)
    if found is None:
        return
    if found[1] not in (os.geteuid(), 0):
        raise ConnectionLost(
            f"another user (number {found[1]}) listens at {path}",
            "run i-PI as yourself, and give it a name that nobody "
            "else can take: sockets_prefix in <simulation>, a folder of your own",
        )
    if pid is not None and found[0] not in _family(pid):
        which = "of a container" if found[0] is None else f"({found[0]})"
        raise OSError(errno.EADDRINUSE, f"another process {which} listens at {path}")


def check_port(port: int, pid: int | None) -> None:
    """Raise OSError where `pid` is known not to listen on this port of this machine."""
    if pid is not None and _listens(pid, port) is False:
        raise OSError(errno.ECONNREFUSED, "the i-PI that was started here does not listen on that port")


def _listens(pid: int, port: int) -> bool | None:
    """Whether a process, or one that it has started, listens on a port; None where /proc cannot tell.

    Where nobody listens it need not tell: dialling does.
    """
    there = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                    there.add(f"socket:[{words[9]}]")
    held = {name for process in _family(pid) for name in _held(Path(f"/proc/{process}"))}
    return bool(there & held) if there and held else None


def _held(process: Path) -> set[str]:
    """What a process has open, by the kernel's names."""
    held = set()
    for descriptor in process.glob("fd/*"):
        with suppress(OSError):  # closed meanwhile
            held.add(os.readlink(descriptor))
    return held


def _family(pid: int) -> set[int]:
    """A process and all that it has started: an `i-pi` may be a script that starts the real one."""
    found, left = {pid}, [pid]
    while left:
        for told in Path(f"/proc/{left.pop()}/task").glob("*/children"):
            with suppress(OSError):  # ended meanwhile
                fresh = set(map(int, told.read_text().split())) - found
                found |= fresh
                left += fresh
    return found
