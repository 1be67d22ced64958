"""Peer 4: ASE's SocketClient with MACE's own calculator. Arguments: model, template, socket name."""

from __future__ import annotations

import sys

from ase.calculators.socketio import SocketClient
from ase.io import read
from mace.calculators import MACECalculator

model, template, address = sys.argv[1:]
atoms = read(template)
atoms.calc = MACECalculator(model_paths=model, device="cpu", default_dtype="float64")
SocketClient(unixsocket=address).run(atoms, use_stress=True)
