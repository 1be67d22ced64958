"""Find out whose process is at the other end: forces sent to another simulation are worse than none.

The kernel knows it: for a unix socket by its credentials, for a port of this machine by /proc (Linux). Where it cannot
be found out, nothing is refused.
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

#: states in /proc/net/tcp: a listening socket, and an established connection (the kernel's tcp_states.h)
TCP_LISTEN, TCP_ESTABLISHED = "0A", "01"
#: i-PI's program, and its package (`python -m ipi`)
IPI_PROGRAMS = {"i-pi", "i-pi.py", "ipi"}


def credentials(sock: socket.socket) -> tuple[int | None, int] | None:
    """Process and user at the other end of a unix socket; None where that is not known, as on other systems."""
    if sock.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid or None, uid  # 0: a process of another PID namespace (a container), which has no id here


def peer_process(sock: socket.socket) -> int | None:
    """The process id of i-PI at the other end of a connection; None where it is not known, as on other machines."""
    found = credentials(sock)
    return found[0] if found else _at_port(sock) if sock.family == socket.AF_INET else None


def peer_folder(sock: socket.socket) -> Path | None:
    """The working directory of i-PI at the other end of a connection; None where it is not known."""
    pid = peer_process(sock)
    try:
        return None if pid is None else Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:  # another user's process, or one that has just ended
        return None


def _at_port(sock: socket.socket) -> int | None:
    """The i-PI of this user that holds the other end of a connection within this machine; not the end of a tunnel.

    An ssh tunnel also ends in a process of this machine, and its folder is not i-PI's: so the program's name counts.
    """
    try:
        # in the order of the other end's row: its own address first
        ends = " ".join(f"{_hex(host)}:{port:04X}" for host, port in (sock.getpeername(), sock.getsockname()))
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    except OSError:
        return None
    names = {f"socket:[{row[9]}]" for row in rows if " ".join(row[1:3]) == ends and row[3] == TCP_ESTABLISHED}
    for process in Path("/proc").glob("[0-9]*") if names else ():
        with suppress(OSError):  # another user's, or ended meanwhile
            words = (process / "cmdline").read_text(errors="replace").split("\0")
            is_ipi = bool(IPI_PROGRAMS & {Path(word).name for word in words})
            if is_ipi and names & _open_sockets(process):
                return int(process.name)
    return None


def _hex(host: str) -> str:
    """An address as /proc/net/tcp prints it: network byte order, read as an integer of this machine."""
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"


def check_unix(sock: socket.socket, path: Path, pid: int | None) -> None:
    """Raise ConnectionLost where another user listens at `path`, and OSError where a process other than `pid` does.

    Any user can listen on a name in /tmp: only an i-PI of this user, or of root, is accepted.
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
    """Whether a process, or one that it has started, listens on a port; None where /proc does not show it.

    Where nobody listens, connecting will fail anyway.
    """
    there = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == TCP_LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    there.add(f"socket:[{words[9]}]")
    held = {name for process in _family(pid) for name in _open_sockets(Path(f"/proc/{process}"))}
    return bool(there & held) if there and held else None


def _open_sockets(process: Path) -> set[str]:
    """The open files of a process by the kernel's names, such as socket:[12345]."""
    held = set()
    for descriptor in process.glob("fd/*"):
        with suppress(OSError):  # closed meanwhile
            held.add(os.readlink(descriptor))
    return held


def _family(pid: int) -> set[int]:
    """A process and all that it has started: an `i-pi` may be a script that starts the real one."""
    found, left = {pid}, [pid]
    while left:
        for children in Path(f"/proc/{left.pop()}/task").glob("*/children"):
            with suppress(OSError):  # ended meanwhile
                fresh = set(map(int, children.read_text().split())) - found
                found |= fresh
                left += fresh
    return found
