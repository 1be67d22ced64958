"""For pytest in other people's suites: count what our client answers, and put it where ASE has its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client import COUNT, Calculated, ase_units, serve

from beadwork.ipi.transport import Address


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Every test has a file of its own in which clients count; the number goes into the report."""
    file = Path(os.environ["BEADWORK_SUITES_FOLDER"], f"count-{abs(hash(item.nodeid))}")
    os.environ[COUNT] = str(file)
    try:
        return (yield)
    finally:
        answered = file.stat().st_size if file.exists() else 0
        item.user_properties.append(("answered", answered))


def pytest_collection_finish(session: pytest.Session) -> None:
    """i-PI's runner has a limit for a quiet machine and a client that starts at once."""
    tools = sys.modules.get("ipi_tests.test_tools")
    if tools is not None:
        tools.TIMEOUT = int(os.environ["BEADWORK_SUITES_TIMEOUT"])


def pytest_make_parametrize_id(val: object) -> str | None:
    """A case is named after its folder, whatever that is called."""
    return val.partition("regression_tests/")[2] or None if isinstance(val, str) else None


class SocketClient:
    """ASE's class as its tests use it."""

    def __init__(
        self,
        host: str = "localhost",
        port: int | None = None,
        unixsocket: str | None = None,
        timeout: float | None = None,
        log: Any = None,
    ) -> None:
        self._address = Address(path=Path(f"/tmp/ipi_{unixsocket}")) if unixsocket else Address(None, host, port or 0)

    def run(self, atoms: Any, use_stress: bool = False) -> None:
        """Serve these atoms with their calculator until the other end closes."""
        ase_units()
        numbers = atoms.numbers.astype(np.int_)
        serve(Calculated(atoms.calc, use_stress), self._address, numbers=numbers, periodic=bool(any(atoms.pbc)))


class PySocketIOClient:
    """The same, in a process of its own."""

    def __init__(self, calculator_factory: Any) -> None:
        self._factory = calculator_factory

    def __call__(
        self, atoms: Any, properties: Any = None, port: int | None = None, unixsocket: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start it; what it is told is pickled by this test itself."""
        told = pickle.dumps([{"unixsocket": unixsocket, "port": port}, atoms.copy(), self._factory])
        process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(told)
        process.stdin.close()
        return process


if __name__ == "__main__":
    where, system, factory = pickle.load(sys.stdin.buffer)
    system.calc = factory()
    SocketClient(**where).run(system, use_stress=True)
elif os.environ.get("BEADWORK_SUITES_ASE"):
    import ase.calculators.socketio

    ase.calculators.socketio.SocketClient = SocketClient
    ase.calculators.socketio.PySocketIOClient = PySocketIOClient
