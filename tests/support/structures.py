"""Random structures of every shape that a model may meet. Nothing of beadwork's neighbour lists is used here."""

from __future__ import annotations

import numpy as np

from beadwork.frame import Frame

KINDS = ("triclinic", "tiny", "huge", "cluster", "slab", "wire", "unwrapped", "lone", "h2", "liquid")


def structure(kind: str, seed: int, elements=(1, 8)) -> Frame:
    """A structure whose atoms are at least about 0.7 Å apart."""
    rng = np.random.default_rng((KINDS.index(kind), seed))
    if kind == "lone":
        pbc = bool(seed % 2)
        return frame(rng, elements, rng.normal(size=(1, 3)) * 30, np.eye(3) * 15.0 * pbc, (pbc,) * 3)
    if kind == "h2":
        far = seed % 2 == 0  # dissociated: beyond the cutoff
        direction = rng.normal(size=3)
        bond = direction / np.linalg.norm(direction) * (7.0 if far else rng.uniform(0.5, 1.5))
        pbc = bool(seed % 3)
        cell = np.eye(3) * 20.0 * pbc
        center = rng.normal(size=3)
        return Frame(np.array([1, 1]), np.stack([center, center + bond]), cell, (pbc,) * 3)
    shape, spacing = {
        "triclinic": ((3, 2, 2), 1.9),
        "tiny": ((1, 1, 2), 1.6),
        "huge": ((3, 3, 2), 9.0),
        "cluster": ((2, 3, 2), 1.5),
        "slab": ((2, 2, 2), 1.7),
        "wire": ((2, 2, 3), 1.8),
        "unwrapped": ((3, 3, 2), 1.8),
        "liquid": ((3, 3, 3), 1.6),
    }[kind]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3) / shape
    cell = np.diag(np.array(shape) * spacing)
    if kind in ("triclinic", "tiny", "unwrapped", "slab"):
        cell = cell @ (np.eye(3) + rng.uniform(-0.25, 0.25, (3, 3)))
    positions = (grid + rng.uniform(-0.14, 0.14, grid.shape) / shape) @ cell + rng.normal(size=3)
    if kind == "huge":  # a few close pairs in a lot of nothing
        positions[::2] = positions[1::2] + rng.uniform(-0.3, 0.3, (len(positions) // 2, 3)) + [1.3, 0, 0]
    if kind == "unwrapped":
        positions = positions + rng.integers(-5, 6, grid.shape) @ cell
    pbc = {"cluster": (False, False, False), "slab": (True, True, False), "wire": (False, True, False)}.get(kind)
    if kind == "cluster":
        cell = np.zeros((3, 3))
    if kind == "slab":
        cell[2] = 0
    return frame(rng, elements, positions, cell, pbc or (True, True, True))


def frame(rng, elements, positions, cell, pbc) -> Frame:
    """A frame with random elements."""
    return Frame(rng.choice(elements, len(positions)), np.ascontiguousarray(positions), cell, pbc)


def beads(count: int, seed: int, spread: float = 0.1, n: int = 3) -> list[Frame]:
    """A ring polymer of a periodic liquid of n^3 atoms: copies of one structure, displaced atom by atom."""
    rng = np.random.default_rng(seed)
    one = structure("liquid", seed)
    return [
        Frame(one.numbers, one.positions + rng.normal(size=one.positions.shape) * spread, one.cell, one.pbc, k)
        for k in range(count)
    ]
