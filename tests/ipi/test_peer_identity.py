"""Whose i-PI it is that listens."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beadwork.errors import ConnectionLost
from beadwork.ipi.peer_identity import check_unix, peer_folder, peer_process
from beadwork.ipi.transport import Address, Line, Transport, address_in_use, is_stale

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
    with subprocess.Popen(["sleep", "60"]) as other:
        stranger = Transport([Line(address, pid=other.pid)], patience=0.3)
        try:
            with pytest.raises(ConnectionLost) as refused:
                poll_on(stranger)
        finally:
            other.kill()
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
def test_an_ipi_that_a_script_starts(kind: str, tmp_path: Path) -> None:
    """Sites put scripts before programs: the process that listens is one that ours has started."""
    family = "AF_UNIX" if kind == "unix" else "AF_INET"
    code = (
        f"import socket, sys, time; s = socket.socket(socket.{family}); "
        f"s.bind({str(tmp_path / 'socket')!r} if {kind == 'unix'} else ('127.0.0.1', 0)); s.listen(9); "
        "print(s.getsockname()[1], flush=True); time.sleep(60)"
    )
    script = ["sh", "-c", '"$@"; true', "sh", sys.executable, "-c", code]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline().strip()
            address = Address(tmp_path / "socket") if kind == "unix" else Address(None, "127.0.0.1", int(told))
            transport = Transport([Line(address, pid=process.pid)], patience=5.0)
            transport.poll(0.05)
            assert len(transport.lines[0].peers) == 1
            transport.close()
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_process_of_another_container_has_no_number(tmp_path: Path) -> None:
    """The kernel says 0 of each, by which one that was started again would pass for the same; and none of them is the
    i-PI that we have started."""

    class Foreign(socket.socket):
        def getsockopt(self, *option: int) -> bytes:  # type: ignore[override]
            assert option == (socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return struct.pack("3i", 0, os.geteuid(), os.getegid())

    with Foreign(socket.AF_UNIX) as sock:
        assert peer_process(sock) is None
        assert peer_folder(sock) is None
        check_unix(sock, tmp_path / "socket", None)
        with pytest.raises(OSError, match="another process of a container listens at"):
            check_unix(sock, tmp_path / "socket", os.getpid())


@pytest.mark.parametrize("name", ["i-pi", "tunnel"])
def test_where_the_other_end_of_a_port_works(name: str, tmp_path: Path) -> None:
    """An i-PI of this machine is found by its port, and so is the folder in which it looks for EXIT; a program of
    another name, as the end of a tunnel, is not taken for one."""
    (tmp_path / name).write_text(
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
        "c = s.accept()[0]; time.sleep(60)"
    )
    command = [sys.executable, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            with socket.create_connection(("127.0.0.1", int(process.stdout.readline()))) as sock:
                found = peer_folder(sock)
                for _ in range(100):  # until it has accepted
                    found = found or peer_folder(sock)
                    if found or name != "i-pi":
                        break
                    time.sleep(0.05)
                assert found == (tmp_path.resolve() if name == "i-pi" else None)
        finally:
            process.kill()


def test_a_socket_in_a_deep_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes 107 bytes for a name, and i-PI bound a short one from its own folder."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        server.listen(9)
        assert not is_stale(deep / "socket")
        transport = Transport([Line(Address(deep / "socket"))], patience=5.0)
        transport.poll(0.05)
        assert len(transport.lines[0].peers) == 1
        transport.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_that_is_held(listening: tuple[socket.socket, Address], tmp_path: Path) -> None:
    """An i-PI started there would die of it, after its server had answered the other one."""
    server, address = listening
    assert address_in_use(address)
    server.close()
    if address.path is not None:
        address.path.unlink()
    assert not address_in_use(address)
