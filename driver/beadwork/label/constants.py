"""CODATA 2018 constants, by which labels of every code are converted to eV and Å.

Programs have values of different years, and a Hartree that differs by 2e-7 eV shifts the energy of (H2O)4 by 2 meV:
codes get their geometry in Bohr and return Hartree, and only these numbers convert.
"""

from __future__ import annotations

#: eV in one Hartree
HARTREE = 27.211386245988
#: Å in one Bohr
BOHR = 0.529177210903
