"""Real i-PI in these tests: see support.real_ipi."""

from support.real_ipi import _environment, ipi, mace_driver, models, serve, start  # noqa: F401
