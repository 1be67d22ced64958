"""What is measured: boxes of water, beads that are spread, and MACE models with random weights."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from beadwork.frame import FloatArray, Frame

#: Å^3 that one water has at 0.997 g/cm3
VOLUME = 30.0
#: Å, standard deviation of a bead about the centroid: roughly that of water at 300 K
SPREAD = {8: 0.03, 1: 0.1}


@dataclass(frozen=True)
class Size:
    """One size of the full loop."""

    beads: int = 8
    waters: int = 64
    channels: int = 64
    cutoff: float = 5.0
    members: int = 4
    device: str = "cpu"
    dtype: str = "float64"


@dataclass(frozen=True)
class Plan:
    """How much is done.

    loop, search: the full loop, and the smaller one in which settings are found (None: they are not).
    """

    loop: Size = Size()
    search: Size | None = Size(waters=16)
    rounds: int = 5
    steps: int = 3
    wire_beads: int = 32
    wire_steps: int = 100
    scaling_beads: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    scaling_waters: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    #: Seconds a step of the full loop may take before the peer is given up.
    patience: float = 240.0

    def as_json(self) -> dict[str, object]:
        """The plan as plain data."""
        return dict(asdict(self), scaling_beads=list(self.scaling_beads), scaling_waters=list(self.scaling_waters))


#: a check that the harness works, no measurement
QUICK = Plan(
    loop=Size(beads=2, waters=8, channels=8, cutoff=4.0, members=2),
    search=None,
    rounds=1,
    steps=2,
    wire_beads=4,
    wire_steps=10,
    scaling_beads=(1, 2),
    scaling_waters=(8, 16),
    patience=60.0,
)


def water(count: int, seed: int = 0) -> Atoms:
    """A periodic box of `count` waters on a grid, turned at random."""
    grid = min(
        ((a, b, count // a // b) for a in range(1, count + 1) for b in range(1, count + 1) if count % (a * b) == 0),
        key=lambda sides: max(sides) / min(sides),
    )
    edge = VOLUME ** (1 / 3)
    rng = np.random.default_rng(seed)
    half = np.deg2rad(104.5 / 2)
    molecule = 0.96 * np.array([[0, 0, 0], [np.sin(half), 0, np.cos(half)], [-np.sin(half), 0, np.cos(half)]])
    positions = []
    for site in itertools.product(*map(range, grid)):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        positions.append(molecule @ turn + edge * (np.array(site) + 0.5))
    return Atoms("OHH" * count, np.concatenate(positions), cell=edge * np.array(grid), pbc=True)


def beads(atoms: Atoms, count: int, seed: int = 1) -> FloatArray:
    """(count, n, 3) Å: a ring polymer about the atoms, each atom's beads with mean zero."""
    rng = np.random.default_rng(seed)
    width = np.array([SPREAD[z] for z in atoms.numbers])
    away = rng.normal(size=(count, len(atoms), 3)) * width[:, None]
    spread: FloatArray = atoms.positions + away - away.mean(axis=0)
    return spread


def frames(atoms: Atoms, count: int, seed: int = 1) -> list[Frame]:
    """The same as Frames."""
    start = Frame.from_atoms(atoms)
    return [Frame(start.numbers, x, start.cell, start.pbc, k) for k, x in enumerate(beads(atoms, count, seed))]


def write_start(folder: Path, size: Size) -> None:
    """Write init.xyz for those who want a template, and bead-K.xyz in i-PI's own format."""
    atoms = water(size.waters)
    write(folder / "init.xyz", atoms, format="extxyz")
    lengths = " ".join(f"{x:.8f}" for x in atoms.cell.lengths())
    for k, positions in enumerate(beads(atoms, size.beads)):
        lines = [str(len(atoms)), f"# CELL(abcABC): {lengths} 90 90 90 positions{{angstrom}} cell{{angstrom}}"]
        symbols = zip(atoms.get_chemical_symbols(), positions, strict=True)
        lines += [f"{s} {x:.10f} {y:.10f} {z:.10f}" for s, (x, y, z) in symbols]
        (folder / f"bead-{k}.xyz").write_text("\n".join(lines) + "\n")


def models(folder: Path, channels: int, cutoff: float, count: int) -> list[Path]:
    """Write `count` MACE models with random weights, and return bundles of them; model-M.model lies beside model-M.

    Two layers, max_ell 3, correlation 3, float64. The reference energies are zero, so that all digits which i-PI
    prints of the potential are the network's.
    """
    bundles = [folder / f"model-{m}" for m in range(count)]
    if all((bundle / "card.toml").exists() for bundle in bundles):
        return bundles
    from beadwork.potential.importer import import_model

    for seed, bundle in enumerate(bundles):
        if not (bundle / "card.toml").exists():
            file = bundle.with_suffix(".model")
            _write(file, channels, cutoff, seed)
            import_model(file, bundle, trust_pickle=True)
    return bundles


def trunk(folder: Path, channels: int, cutoff: float, heads: int) -> Path:
    """The same with heads of random weights on one trunk: a bundle of all as a committee."""
    from beadwork.potential.importer import import_model

    bundle = folder / f"trunk-{heads}"
    if not (bundle / "card.toml").exists():
        _write(bundle.with_suffix(".model"), channels, cutoff, 99, [f"head{m}" for m in range(heads)])
        import_model(bundle.with_suffix(".model"), bundle, trust_pickle=True, committee=True)
    return bundle


def committees(folder: Path, channels: int, cutoff: float, heads: int) -> list[Path]:
    """Bundles of one and the same committee in two forms: each head of `trunk` as a model of its own, and the trunk.

    The file of a head, which i-PI's own driver takes, lies beside its bundle. Both forms have the same weights, so
    that whoever serves them must answer the same.
    """
    from beadwork.potential.importer import import_model

    shared = trunk(folder, channels, cutoff, heads)
    bundles = [folder / f"head-{m}-of-{heads}" for m in range(heads)]
    for m, bundle in enumerate(bundles):
        if not (bundle / "card.toml").exists():
            _take_head(shared.with_suffix(".model"), f"head{m}", bundle.with_suffix(".model"))
            import_model(bundle.with_suffix(".model"), bundle, trust_pickle=True)
    return [*bundles, shared]


def _take_head(trunk: Path, head: str, file: Path) -> None:
    """Write one head of a trunk as a model of its own, by mace's own function."""
    import torch

    from beadwork.potential.architecture import mace_imported

    with mace_imported():
        from mace.tools.scripts_utils import remove_pt_head

        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        # the file was written by this script
        torch.save(remove_pt_head(torch.load(trunk, weights_only=False), head), file)
        torch.set_default_dtype(before)


def _write(file: Path, channels: int, cutoff: float, seed: int, heads: list[str] | None = None) -> None:
    """Write an eager MACE of random weights."""
    import torch

    from beadwork.potential.architecture import mace_imported

    count = len(heads or [""])
    with mace_imported():
        import mace.modules
        from e3nn.o3 import Irreps

        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        block = mace.modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        model = mace.modules.ScaleShiftMACE(
            r_max=cutoff,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=2,
            hidden_irreps=Irreps(f"{channels}x0e + {channels}x1o"),
            MLP_irreps=Irreps("16x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.zeros(2) if heads is None else np.zeros((count, 2)),
            avg_num_neighbors=38.0,
            atomic_numbers=[1, 8],
            correlation=3,
            radial_type="bessel",
            radial_MLP=[64, 64, 64],
            atomic_inter_scale=0.8 if heads is None else [0.8] * count,
            atomic_inter_shift=0.0 if heads is None else [0.0] * count,
            heads=heads,
        )
        torch.save(model, file)
        torch.set_default_dtype(before)
