"""Put in place of i-PI's drivers/py/driver.py: the same function, with beadwork's client behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client import engine, serve

from beadwork.ipi.transport import Address


def run_driver(
    *, unix: bool = False, address: str = "", port: int = 12345, driver: Any = None, shm: bool = False
) -> None:
    """Serve i-PI's harmonic driver's potential; its spring is in Hartree/Bohr^2."""
    name = type(driver).__name__
    if name != "Harmonic_driver" or driver.type != "isotropic":
        raise SystemExit(f"no potential for {name} in here")
    where = Address(path=Path(f"/tmp/ipi_{address}")) if unix else Address(host=address, port=port)
    serve(engine("harmonic", [driver.k]), where, shared=shm)
