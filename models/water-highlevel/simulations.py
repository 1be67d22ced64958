"""Write the simulations that frames are harvested from: path-integral MD of twelve clusters, a folder each.

python models/water-highlevel/simulations.py START.xyz OUT

START.xyz comes from geometries.py. A cluster stands in the middle of a box so large that no image matters; serve it
with --not-periodic. H2 would leave its waters at 250 K within a picosecond, so its clusters are colder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
from ase import Atoms

BOX = 40.0
KELVIN = {"H2O": 250, "H3O": 300, "H2": 100}
#: by waters beside the solute: a label of five molecules costs thirty of two
STEPS = {1: 240, 2: 240, 3: 180, 4: 90}
INPUT = """<!-- {system}, {kelvin} K, 16 beads -->
<simulation verbosity='medium' safe_stride='100'>
  <output prefix='simulation'>
    <properties stride='1' filename='out'>
      [ step, time{{femtosecond}}, conserved{{electronvolt}}, temperature{{kelvin}}, potential{{electronvolt}} ]
    </properties>
    <trajectory stride='{stride}' filename='pos' format='xyz' cell_units='angstrom'> positions{{angstrom}} </trajectory>
    <trajectory stride='{stride}' filename='committee' extra_type='committee_pot'> extras </trajectory>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>{seed}</seed></prng>
  <ffsocket name='beadwork' mode='unix'>
    <address>highlevel-{name}</address>
    <batch_size>16</batch_size>
    <latency>1e-3</latency>
  </ffsocket>
  <system>
    <initialize nbeads='16'>
      <file mode='xyz'>start.xyz</file>
      <velocities mode='thermal' units='kelvin'>{kelvin}</velocities>
    </initialize>
    <forces>
      <force forcefield='beadwork'/>
    </forces>
    <ensemble>
      <temperature units='kelvin'>{kelvin}</temperature>
    </ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'>0.5</timestep>
        <thermostat mode='pile_l'>
          <tau units='femtosecond'>50</tau>
        </thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def write(folder: Path, atoms: Atoms, name: str, steps: int, stride: int, seed: int) -> None:
    """One simulation: its start structure, in the middle of the box, and its input."""
    system = atoms.info["system"]
    folder.mkdir(parents=True, exist_ok=True)
    atoms.positions += BOX / 2 - atoms.positions.mean(axis=0)
    lines = [f"{len(atoms)}", f"# CELL(abcABC): {BOX} {BOX} {BOX} 90 90 90 cell{{angstrom}} positions{{angstrom}}"]
    lines += [f"{a.symbol} {a.x:.8f} {a.y:.8f} {a.z:.8f}" for a in atoms]
    (folder / "start.xyz").write_text("\n".join(lines) + "\n")
    kelvin = KELVIN[system.split("+")[0]]
    text = INPUT.format(system=system, name=name.lower(), kelvin=kelvin, steps=steps, stride=stride, seed=seed)
    (folder / "input.xml").write_text(text)


def main(start: Path, out: Path) -> None:
    """Take the first frame of every composition with one to four waters."""
    firsts = {atoms.info["system"]: atoms for atoms in reversed(ase.io.read(start, ":"))}
    for seed, (system, atoms) in enumerate(sorted(firsts.items())):
        kind, waters = system.split("+")
        if waters != "0H2O":
            name = f"{kind}-{waters[0]}"
            write(out / name, atoms, name, STEPS[int(waters[0])], 20, 1000 + seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
