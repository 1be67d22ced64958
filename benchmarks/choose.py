"""What farthest-point selection saves over a random choice, on frames whose labels are known.

    python benchmarks/choose.py clusters.extxyz [more.extxyz …] --key DELTA --model models/water-revpbe0-d3/baseline

A fifth of the frames is held out, the others are the pool. So many are chosen by `beadwork.label.choose`, and as many
at random, forty times. On each choice a kernel model of the energies is fitted: Gaussian kernels of the same atomic
features, summed over pairs of like atoms, on top of energies of atoms. It stands for a MACE model, which would take
hours for as many choices. Printed: coverage; error of all held-out frames, and of the worst composition (meV/atom).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from beadwork.label.choose import choose
from beadwork.potential.bundle import check
from beadwork.potential.features import features
from beadwork.train.label_file import NO_FORCES, from_file

DRAWS = 40
COUNTS = (10, 20, 40, 60)
#: width of the kernel, in standard deviations of the features, and what an energy an atom may be off (eV)
WIDTH, FLOOR = 4.0, 1e-3


class Kernel:
    """Energies from the features of atoms, fitted to some frames and tested on others."""

    def __init__(self, frames, energies, names, model: Path) -> None:
        vectors, kind, owner = features(frames, check(model))
        vectors = vectors / vectors.std(axis=0)
        self.energies, self.names = energies, names
        self.counts = np.array([[(f.numbers == z).sum() for z in np.unique(kind)] for f in frames], dtype=float)
        self.kernel = np.zeros((len(frames), len(frames)))
        for z in np.unique(kind):
            x, mine = vectors[kind == z], owner[kind == z]
            square = (x**2).sum(axis=1)
            alike = np.exp(-(square[:, None] + square - 2 * x @ x.T) / (2 * WIDTH**2))
            member = np.zeros((len(frames), len(x)))
            member[mine, np.arange(len(x))] = 1
            self.kernel += member @ alike @ member.T

    def errors(self, known, test) -> tuple[float, float]:
        """Error on the test frames, and on its worst composition, meV/atom."""
        atoms = np.linalg.lstsq(self.counts[known], self.energies[known], rcond=1e-10)[0]
        rest = self.energies[known] - self.counts[known] @ atoms
        scale = 4 * (rest / self.counts[known].sum(axis=1)).var() + 1e-18
        weights = np.linalg.solve(scale * self.kernel[np.ix_(known, known)] + FLOOR**2 * np.eye(len(known)), rest)
        found = self.counts[test] @ atoms + scale * self.kernel[np.ix_(test, known)] @ weights
        error = 1e3 * (found - self.energies[test]) / self.counts[test].sum(axis=1)
        kinds = [np.sqrt((error[self.names[test] == name] ** 2).mean()) for name in set(self.names[test])]
        return float(np.sqrt((error**2).mean())), float(max(kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--key", default="REF", help="prefix of the energies")
    parser.add_argument("--model", type=Path, required=True, help="bundle whose features are used")
    args = parser.parse_args()
    examples = [e for file in args.files for e in from_file(file, None, "known", f"{args.key}_energy", NO_FORCES)]
    frames = [e.frame for e in examples]
    names = np.array([e.composition for e in examples])
    kernel = Kernel(frames, np.array([e.energy for e in examples]), names, args.model)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(frames))
    test, pool = order[: len(order) // 5], order[len(order) // 5 :]
    print(f"{len(pool)} frames to choose from, {len(test)} held out; error, and that of the worst composition")
    for count in COUNTS:
        choice = choose([frames[i] for i in pool], None, [], args.model, count)
        ours = kernel.errors(pool[list(choice.order)], test)
        random = np.array([kernel.errors(rng.choice(pool, count, replace=False), test) for _ in range(DRAWS)])
        mean, scatter = random.mean(axis=0), random.std(axis=0)
        print(
            f"{choice}; chosen {ours[0]:.2f} and {ours[1]:.2f}, random {mean[0]:.2f} ± {scatter[0]:.2f} and "
            f"{mean[1]:.2f} ± {scatter[1]:.2f}"
        )


if __name__ == "__main__":
    main()
