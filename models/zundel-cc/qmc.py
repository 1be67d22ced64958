"""Ten of the composite labels beside variational Monte Carlo of the same geometries.

cd build/zundel-cc; M=../../models/zundel-cc
python $M/qmc.py choose qmc.extxyz                 # ten, all turned onto the first
beadwork queue add first.db qmc.extxyz --every 10 --not-periodic
beadwork label first.db --with $M/qmc-first.toml   # optimises the Jastrow factor of the first, in the folder first
cp first/*/optimised.h5 .
beadwork queue add qmc.db qmc.extxyz --not-periodic
beadwork label qmc.db --with $M/qmc.toml           # samples all with this Jastrow factor
beadwork queue export qmc.db qmc.labelled.extxyz --status labelled
python $M/qmc.py compare qmc.labelled.extxyz       # a table; the labels are kept in labels/qmc.extxyz.gz
"""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.units import kJ, mol
from scipy.spatial.transform import Rotation

from beadwork.analyse.coordinate import parse
from beadwork.digits import with_bar
from beadwork.frame import FloatArray

HERE = Path(__file__).parent
KJ_MOL_OF_EV = mol / kJ
COORDINATES = [parse("distance:O1,O2"), parse("dc:O1,O2")]
#: d_OO in Å and |dc| about which a geometry is taken, the first five over the whole range
WANTED = [
    (2.4, 0.05), (2.5, 0.5), (2.6, 0.05), (2.85, 0.9), (2.3, 0.05),
    (2.4, 0.3), (2.6, 0.6), (2.75, 0.3), (2.85, 0.05), (2.5, 0.1),
]  # fmt: skip
#: of d_OO and |dc|, in which the nearest geometry is looked for
WIDTHS = np.array([0.1, 0.2])
#: of what the queue tells of a label
KEPT = ("REF_energy", "REF_energy_error", "charge", "spin", "method", "code", "version")
#: Å, by which distances of one geometry may differ after files have rounded them
SAME = 1e-5


def place(atoms: Atoms) -> FloatArray:
    """Return d_OO in Å, and |dc|."""
    return np.abs([of.values(atoms.numbers, atoms.positions[None])[0, 0] for of in COORDINATES])


def composite() -> list[Atoms]:
    """All geometries that have a composite label."""
    files = sorted([*(HERE / "labels").glob("cc-*"), *(HERE / "labels").glob("held-out-*")])
    return [atoms for file in files for atoms in ase.io.read(file, ":")]


def choose(file: Path) -> None:
    """Write the geometries nearest to what is wanted, each turned onto the first: orbitals of the Jastrow factor, which
    is the first one's, do not turn with the atoms."""
    every = composite()
    there = np.array([place(atoms) for atoms in every])
    written: list[Atoms] = []
    for wanted in WANTED:
        nearest = every[int((((there - wanted) / WIDTHS) ** 2).sum(axis=1).argmin())]
        positions = nearest.positions - nearest.positions.mean(axis=0)
        if written:
            positions = Rotation.align_vectors(written[0].positions, positions)[0].apply(positions)
        written.append(Atoms(nearest.numbers, positions, info={"charge": 1, "spin": 0}))
    ase.io.write(file, written, format="extxyz")


def compare(labelled: list[Path]) -> None:
    """Print what VMC adds to the composite scheme, the constant part left out, and keep the labels."""
    labels = [atoms for file in labelled for atoms in ase.io.read(file, ":")]
    known = composite()
    distances = np.array([atoms.get_all_distances() for atoms in known])
    rows = []
    for atoms in labels:
        off = np.abs(distances - atoms.get_all_distances()).max(axis=(1, 2))
        if off.min() > SAME:
            raise SystemExit(f"a geometry of {labelled[0]} has no composite label")
        energies = [one.info["REF_energy"] for one in (known[int(off.argmin())], atoms)]
        rows.append([*place(atoms), *energies, atoms.info["REF_energy_error"]])
    d_oo, dc, scheme, vmc, error = np.array(rows).T
    scheme, vmc, error = ((of * KJ_MOL_OF_EV) for of in (scheme - scheme.mean(), vmc, error))
    shares = error**-2 / (error**-2).sum()
    vmc -= shares @ (vmc - scheme)
    apart = vmc - scheme
    # the constant part has a share of each one's noise
    bars = np.sqrt(error**2 - 1 / (error**-2).sum())
    print("| d_OO, Å | \\|dc\\| | composite | VMC | VMC − composite |\n|---|---|---|---|---|")
    for i in np.argsort(scheme):
        told = f"{scheme[i]:.1f} | {with_bar(vmc[i], bars[i])} | {with_bar(apart[i], bars[i])}"
        print(f"| {d_oo[i]:.2f} | {dc[i]:.2f} | {told} |")
    print(
        f"\n{len(rows)} geometries, kJ/mol: root mean square of the differences {np.sqrt((apart**2).mean()):.1f}, "
        f"of their statistical errors {np.sqrt((bars**2).mean()):.1f}; chi square {((apart / error) ** 2).sum():.1f} "
        f"for {len(rows) - 1} degrees of freedom"
    )
    kept = [Atoms(one.numbers, one.positions, info={key: one.info[key] for key in KEPT}) for one in labels]
    text = io.StringIO()
    ase.io.write(text, kept, format="extxyz")
    (HERE / "labels" / "qmc.extxyz.gz").write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


if __name__ == "__main__":
    if sys.argv[1] == "choose":
        choose(Path(sys.argv[2]))
    else:
        compare([Path(name) for name in sys.argv[2:]])
