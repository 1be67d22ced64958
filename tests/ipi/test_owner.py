"""Whose i-PI it is that listens."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from beadwork.errors import ConnectionLost
from beadwork.ipi.transport import Address, Line, Transport, held

KINDS = ["unix", "inet"]


def poll_on(transport: Transport) -> None:
    """Poll until it raises."""
    while True:
        transport.poll(0.05)


@pytest.fixture
def listening(kind: str, tmp_path: Path):
    """Somebody who listens, and where."""
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as server:
        server.bind(str(tmp_path / "socket") if kind == "unix" else ("127.0.0.1", 0))
        server.listen(99)
        server.settimeout(0.0)
        yield (
            server,
            Address(tmp_path / "socket") if kind == "unix" else Address(None, "127.0.0.1", server.getsockname()[1]),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_ipi_that_was_started_is_dialled(listening: tuple[socket.socket, Address]) -> None:
    """Forces of these models must not enter another simulation that got hold of the address first."""
    server, address = listening
    stranger = Transport([Line(address, pid=os.getppid())], patience=0.3)
    with pytest.raises(ConnectionLost) as refused:
        poll_on(stranger)
    assert ("another process" if address.path else "nobody listens on that port") in str(refused.value)
    stranger.close()
    if address.path is None:  # not even taken by the kernel
        with pytest.raises(BlockingIOError):
            server.accept()
    ours = Transport([Line(address, pid=os.getpid())], patience=5.0)
    ours.poll(0.05)
    assert len(ours.lines[0].peers) == 1
    ours.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_that_is_held(listening: tuple[socket.socket, Address], tmp_path: Path) -> None:
    """An i-PI started there would die of it, after its server had answered the other one."""
    server, address = listening
    assert held(address)
    server.close()
    if address.path is not None:
        address.path.unlink()
    assert not held(address)
