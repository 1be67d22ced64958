"""Faults are provoked with the means of tests/end_to_end: real i-PI, random-weight models, programs that end."""

from support.real_ipi import _environment, ipi, models, serve, start  # noqa: F401
