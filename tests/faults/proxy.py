"""Stands between i-PI and beadwork, and does to their connections what it is told.

    python proxy.py PLAN.json

A program of its own, so that a server under test can count its own descriptors and threads. The plan: listen and dial
(a unix socket's path, or [host, port]); cuts: what ends each connection in turn, null for nothing,
[direction, bytes] to hang up once so many bytes have gone "in" (to beadwork) or "out" (to i-PI), "reset" as a third for
a connection that is reset instead, or ["exit", bytes] for so many bytes of EXIT; dribble: [direction, pause, bytes] to
let single bytes through that many seconds apart, as long as so many bytes have not gone; stall: [direction, bytes,
seconds] to wait there, on the first connection. record: a folder for what has gone each way on each connection.
count: a file for the number of connections; done: one for the numbers of those that were cut.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

EXIT = b"EXIT        "


def listen(where: Any) -> socket.socket:
    """A listening socket at a path or [host, port]."""
    sock = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
    if not isinstance(where, str):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(where if isinstance(where, str) else tuple(where))
    sock.listen(16)
    return sock


def dial(where: Any) -> socket.socket | None:
    """A connection there, None if nobody listens."""
    sock = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
    try:
        sock.connect(where if isinstance(where, str) else tuple(where))
    except OSError:
        sock.close()
        return None
    if not isinstance(where, str):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def end(sock: socket.socket, reset: bool) -> None:
    """Hang up in order, or with a reset."""
    with contextlib.suppress(OSError):
        if reset and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif not reset:
            sock.shutdown(socket.SHUT_RDWR)
            sock.setblocking(False)
            while sock.recv(1 << 16):
                pass
    sock.close()


class Pair:
    """One connection through here, and how it ends."""

    def __init__(self, plan: dict[str, Any], number: int, ours: socket.socket, theirs: socket.socket) -> None:
        cuts = plan.get("cuts", [])
        self._cut = cuts[number] if number < len(cuts) else None
        self._dribble = plan.get("dribble")
        self._stall = plan.get("stall") if number == 0 else None
        self._sides = {"in": (theirs, ours), "out": (ours, theirs)}  # from, to
        self._gone = {"in": 0, "out": 0}
        self._done = plan.get("done")
        self._number = number
        self._record = Path(plan["record"]) / f"{number}" if plan.get("record") else None

    def run(self) -> None:
        """Pass on until one side ends or the cut is reached."""
        of = {pair[0]: direction for direction, pair in self._sides.items()}
        reset = False
        try:
            while True:
                for sock in select.select(list(of), [], [])[0]:
                    data = sock.recv(1 << 16)
                    if not data:
                        return
                    if not self._pass(of[sock], data):
                        reset = bool(self._cut) and self._cut[-1] == "reset"
                        if self._done:
                            with open(self._done, "a") as file:
                                file.write(f"{self._number}\n")
                        return
        except OSError:
            return
        finally:
            for sock in of:
                end(sock, reset)

    def _pass(self, direction: str, data: bytes) -> bool:
        """Send on what may go; False where it was the last."""
        whole = len(data)
        cut = self._cut
        if cut and cut[0] == direction:
            data = data[: max(0, cut[1] - self._gone[direction])]
        elif cut and cut[0] == "exit" and direction == "in" and data.endswith(EXIT):
            data = data[: len(data) - len(EXIT) + cut[1]]
        if self._record is not None:
            with open(f"{self._record}-{direction}", "ab") as file:
                file.write(data)
        self._send(direction, data)
        return len(data) == whole

    def _send(self, direction: str, data: bytes) -> None:
        to = self._sides[direction][1]
        stall = self._stall
        if stall and stall[0] == direction and self._gone[direction] + len(data) > stall[1]:
            first = stall[1] - self._gone[direction]
            to.sendall(data[:first])
            time.sleep(stall[2])
            self._stall = None
            to.sendall(data[first:])
        elif self._dribble and self._dribble[0] == direction and self._gone[direction] < self._dribble[2]:
            for k in range(len(data)):
                to.sendall(data[k : k + 1])
                time.sleep(self._dribble[1])
        else:
            to.sendall(data)
        self._gone[direction] += len(data)


def main() -> None:
    """Serve until killed."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    listener = listen(plan["listen"])
    number = 0
    while True:
        ours, _ = listener.accept()
        theirs = dial(plan["dial"])
        if theirs is None:
            ours.close()
            continue
        if ours.family != socket.AF_UNIX:
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=Pair(plan, number, ours, theirs).run, daemon=True).start()
        number += 1
        if plan.get("count"):
            Path(plan["count"]).write_text(str(number))


if __name__ == "__main__":
    main()
