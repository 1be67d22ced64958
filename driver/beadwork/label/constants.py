"""CODATA 2018, in which labels are converted to eV and Å, whichever code computed them.

Programs bring values of different years, and a Hartree that differs by 2e-7 eV shifts the energy of (H2O)4 by 2 meV:
codes are told their geometry in Bohr and asked for Hartree, and only these numbers stand between.
"""

from __future__ import annotations

#: eV in one Hartree
HARTREE = 27.211386245988
#: Å in one Bohr
BOHR = 0.529177210903
