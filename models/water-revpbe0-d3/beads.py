"""Labels of quantum water: frames of beads with the forces of a published committee of neural networks for revPBE0-D3.

    pip install dftd3
    python models/water-revpbe0-d3/beads.py label c-nnp-model/ FRAMES.extxyz … OUT.extxyz
    python models/water-revpbe0-d3/beads.py errors

`errors` says how far the bundles here are from labels: from those in beads.extxyz.gz, which they have learned, and
from those in beads-held-out.extxyz.gz, single beads that the baseline itself has sampled at 300 K: 16 beads of 32 H2O,
from the start of inputs/water and from one of simulations that nobody learned from (frames.py).

The 84 frames of DFT that the baseline learned are of classical nuclei. No DFT of beads is at hand, but a committee
that was trained on it is: C-NNP of generation 4 by Schran, Brezina and Marsalek (github.com/MarsalekGroup/paper-c-nnp,
generation-4/c-nnp-model, CC-BY-SA-4.0), eight networks for classical and quantum water of the same level and reference
energies. Of seven of the 84 frames its mean is 41 meV/Å and 0.5 meV/atom from DFT, less than the baseline is.
LO_energy, LO_forces: that mean less D3(zero), which DELTA_energy and DELTA_forces have from simple-dftd3 (eV, eV/Å).

In all 205 frames every hydrogen has one oxygen within 1.3 Å, and every oxygen two hydrogens. 53 are of the baseline of
classical frames and of one that knew some of those (64-t0, 64-t8, 32-eco20, 32-eco24; 64-s16, 64-s40, 32-e32); 152 of
the next one, which found 90 of these among the newest that it met (64-t5, 64-t33, 32-e33).

The networks are of Behler and Parrinello (Phys. Rev. Lett. 98, 146401, 2007), in the files of n2p2: radial and
narrow angular symmetry functions (J. Behler, J. Chem. Phys. 134, 074106, 2011), the cutoff function tanh³(1 - r/r_c).
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.data import atomic_numbers
from ase.neighborlist import neighbor_list
from frames import d3
from tqdm import tqdm

import beadwork

HERE = Path(__file__).parent
FORCE = units.Hartree / units.Bohr
F64: dict[str, Any] = {"dtype": torch.float64}


class Committee:
    """The networks of a folder, nnp-1, nnp-2, …, whose symmetry functions are those of the first."""

    def __init__(self, folder: Path) -> None:
        networks = sorted(folder.glob("nnp-*"))
        lines = [line.split("#")[0].split() for line in (networks[0] / "input.nn").read_text().splitlines()]
        self.alone = {atomic_numbers[w[1]]: float(w[2]) for w in lines if w and w[0] == "atom_energy"}
        # n2p2 counts an element's functions by kind, cutoff, eta, then by shift or zeta and lambda, then by elements
        radial: dict[int, list[tuple[float, ...]]] = {z: [] for z in self.alone}
        angular: dict[int, list[tuple[float, ...]]] = {z: [] for z in self.alone}
        for words in lines:
            if not words or words[0] != "symfunction_short":
                continue
            numbers = [atomic_numbers.get(word, 0) for word in words[1:]]
            if words[2] == "2":
                eta, shift, self.cutoff = map(float, words[4:7])
                radial[numbers[0]].append((eta, shift, numbers[2]))
            else:
                eta, sign, zeta, self.cutoff = map(float, words[5:9])
                angular[numbers[0]].append((eta, zeta, sign, *sorted(numbers[2:4])))
        self.radial = {z: sorted(of) for z, of in radial.items()}
        self.angular = {z: sorted(of) for z, of in angular.items()}
        # n2p2 numbers elements from 1, the lightest first
        table = np.array([line.split() for line in scaled(networks[0] / "scaling.data")], dtype=float)
        self.range = {z: torch.from_numpy(table[table[:, 0] == k, 2:5]) for k, z in enumerate(sorted(self.alone), 1)}
        self.weights = [{z: layers(folder / f"weights.{z:03d}.data") for z in self.alone} for folder in networks]

    def __call__(self, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
        """The networks' energies (M,), eV, and the forces of their mean (A, 3), eV/Å."""
        i, j, shift = (torch.from_numpy(a) for a in neighbor_list("ijS", atoms, self.cutoff * units.Bohr))
        order = torch.argsort(i, stable=True)
        i, j, shift = i[order], j[order], shift[order].double()
        positions = torch.tensor(atoms.positions / units.Bohr, requires_grad=True)
        vectors = positions[j] - positions[i] + shift @ torch.from_numpy(atoms.cell[:] / units.Bohr)
        z = torch.from_numpy(atoms.numbers)
        found = self._functions(z, i, j, vectors)
        energies = []
        for network in self.weights:
            parts = []
            for element, of in network.items():
                low, high, middle = self.range[element].T
                x = (found[element] - middle) / (high - low)
                for weight, bias in of[:-1]:
                    x = torch.tanh(x @ weight + bias)
                parts.append((x @ of[-1][0] + of[-1][1]).sum())
            energies.append(sum(parts))
        mean = torch.stack(energies).mean()
        forces = -torch.autograd.grad(mean, positions)[0].numpy() * FORCE
        alone = sum(self.alone[int(n)] for n in atoms.numbers)
        return np.array([(float(e.detach()) + alone) * units.Hartree for e in energies]), forces

    def _functions(self, z: torch.Tensor, i: torch.Tensor, j: torch.Tensor, vectors: torch.Tensor) -> Any:
        """By element (n, functions): the symmetry functions of its atoms. vectors: (E, 3) Bohr, edges sorted by i."""
        lengths = vectors.norm(dim=1)
        cut = torch.tanh(1 - lengths / self.cutoff) ** 3
        # pairs of edges of one atom, each once
        degree = np.bincount(i.numpy(), minlength=len(z))
        pairs = [np.stack(np.triu_indices(n, 1)) + at for n, at in zip(degree, np.cumsum(degree) - degree, strict=True)]
        a, b = torch.from_numpy(np.concatenate(pairs, axis=1))
        with torch.no_grad():
            near = (vectors[a] - vectors[b]).norm(dim=1) < self.cutoff
        a, b = a[near], b[near]
        found = {}
        for element in self.alone:
            mine = torch.nonzero(z == element).flatten()
            row = torch.full((len(z),), -1)
            row[mine] = torch.arange(len(mine))
            nothing = torch.zeros(len(mine), dtype=torch.float64)
            columns = []
            for eta, shift, other in self.radial[element]:
                of = (z[i] == element) & (z[j] == other)
                values = torch.exp(-eta * (lengths[of] - shift) ** 2) * cut[of]
                columns.append(nothing.index_add(0, row[i[of]], values))
            for eta, zeta, sign, one, two in self.angular[element]:
                ends = torch.stack((z[j[a]], z[j[b]])).sort(dim=0).values
                of = (z[i[a]] == element) & (ends[0] == one) & (ends[1] == two)
                p, q = a[of], b[of]
                across = (vectors[p] - vectors[q]).norm(dim=1)
                cosine = (vectors[p] * vectors[q]).sum(1) / (lengths[p] * lengths[q])
                squares = lengths[p] ** 2 + lengths[q] ** 2 + across**2
                inside = cut[p] * cut[q] * torch.tanh(1 - across / self.cutoff) ** 3
                values = 2 ** (1 - zeta) * (1 + sign * cosine) ** zeta * torch.exp(-eta * squares) * inside
                columns.append(nothing.index_add(0, row[i[p]], values))
            found[element] = torch.stack(columns, dim=1)
        return found


def scaled(file: Path) -> list[str]:
    """The rows of scaling.data that are of functions."""
    return [line for line in file.read_text().splitlines() if not line.startswith("#") and len(line.split()) == 6]


def layers(file: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights (inputs, outputs) and biases (outputs,) of each layer, from the numbers as n2p2 lists them."""
    entries = [line.split() for line in file.read_text().splitlines() if not line.startswith("#") and line.strip()]
    weights = {tuple(map(int, e[3:7])): float(e[0]) for e in entries if e[1] == "a"}
    biases = {tuple(map(int, e[3:5])): float(e[0]) for e in entries if e[1] == "b"}
    found = []
    for layer in range(1, 1 + max(layer for layer, _ in biases)):
        size = sum(at == layer for at, _ in biases)
        inputs = sum(key[2] == layer for key in weights) // size
        matrix = [[weights[layer - 1, m, layer, n] for n in range(1, size + 1)] for m in range(1, inputs + 1)]
        bias = [biases[layer, n] for n in range(1, size + 1)]
        found.append((torch.tensor(matrix, **F64), torch.tensor(bias, **F64)))
    return found


def label(networks: Path, sources: list[Path], out: Path) -> None:
    """Write all frames with labels."""
    committee = Committee(networks)
    labelled = []
    for atoms in tqdm([atoms for file in sources for atoms in ase.io.read(file, ":")], unit="frame"):
        energies, forces = committee(atoms)
        frame = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        frame.info |= {key: atoms.info[key] for key in ("simulation", "step", "bead") if key in atoms.info}
        frame.info["DELTA_energy"], frame.arrays["DELTA_forces"] = d3(atoms)
        frame.info["LO_energy"] = float(energies.mean()) - frame.info["DELTA_energy"]
        frame.arrays["LO_forces"] = forces - frame.arrays["DELTA_forces"]
        labelled.append(frame)
    ase.io.write(out, labelled, format="extxyz")


def errors(file: Path) -> None:
    """Print the bundles' errors of forces, and by how much O-H bonds of some lengths are pulled back too little."""
    frames = ase.io.read(file, ":")
    print(f"{file.name}, {len(frames)} frames")
    asked = [beadwork.Frame.from_atoms(atoms) for atoms in frames]
    for name, key in (("baseline", "LO"), *((f"delta-{m}", "DELTA") for m in range(4))):
        potential = beadwork.load(HERE / name)
        found = [potential.evaluate([frame]) for frame in asked]
        pairs = list(zip(found, frames, strict=True))
        wrong = [answer.forces - atoms.arrays[f"{key}_forces"] for answer, atoms in pairs]
        energy = [(answer.energies[0] - atoms.info[f"{key}_energy"]) / len(atoms) for answer, atoms in pairs]
        print(
            f"  {name}: forces {1e3 * np.sqrt((np.concatenate(wrong) ** 2).mean()):.1f} meV/Å from {key}_forces, "
            f"energy {1e3 * np.mean(energy):+.2f} meV/atom, with a standard deviation of {1e3 * np.std(energy):.2f}"
        )
        if name != "baseline":
            continue
        bonds = []
        for atoms, away in zip(frames, wrong, strict=True):
            h, o, vectors, lengths = neighbor_list("ijDd", atoms, 1.4)
            of = (atoms.numbers[h] == 1) & (atoms.numbers[o] == 8)
            along = vectors[of] / lengths[of, None]
            label = atoms.arrays["LO_forces"][h[of]]
            bonds.append(np.stack((lengths[of], *(np.einsum("bi,bi->b", f, along) for f in (away[h[of]], label)))))
        length, less, label = np.concatenate(bonds, axis=1)
        for low, high in itertools.pairwise((0.7, 0.85, 0.95, 1.05, 1.1, 1.15, 1.2, 1.3)):
            if (of := (length > low) & (length <= high)).any():
                too_little = f"{-less[of].mean():+.2f} too little of {label[of].mean():.2f} eV/Å"
                print(f"    O-H {low} to {high} Å, {of.sum()}: {too_little}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=("label", "errors"))
    parser.add_argument("networks", type=Path, nargs="?", help="folder of nnp-1, nnp-2, …")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="frames, and last the file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.do == "errors":
        for name in ("beads", "beads-held-out"):
            errors(HERE / f"{name}.extxyz.gz")
    elif len(args.files) < 2:
        parser.error("label wants the networks' folder, frames, and a file to write")
    else:
        label(args.networks, args.files[:-1], args.files[-1])


if __name__ == "__main__":
    main()
