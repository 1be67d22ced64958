"""i-PI's own constants: other CODATA values would shift the energy of a 64-water box by 3 meV.

Inside beadwork all is eV and Å; the modules that exchange data with i-PI, or read its files, convert with these
numbers.
"""

from __future__ import annotations

from ipi.utils.units import unit_to_internal

#: Å in one Bohr
BOHR: float = 1.0 / float(unit_to_internal("length", "angstrom", 1.0))
#: eV in one Hartree
HARTREE: float = 1.0 / float(unit_to_internal("energy", "electronvolt", 1.0))
#: eV/Å in one Hartree/Bohr
FORCE: float = HARTREE / BOHR
#: i-PI's time unit in fs
FEMTOSECOND: float = 1.0 / float(unit_to_internal("time", "femtosecond", 1.0))
#: kJ/mol in one Hartree
KJ_MOL: float = 1e-3 / float(unit_to_internal("energy", "j/mol", 1.0))
