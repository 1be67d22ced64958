"""Measure the vibrations of a structure with the user's models, and what an evaluation costs.

The curvature is that at the structure itself, not at a minimum near it: averaged over the many molecules of a liquid
this is what its kinetic energies and forces depend on, anharmonic shifts of frequencies included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from beadwork.doctor.harmonic import Modes
from beadwork.doctor.machine import timed
from beadwork.doctor.search import Cost
from beadwork.frame import FloatArray, Frame
from beadwork.potential.potential import Potential

#: Å; of the largest displacement to each side
DISPLACEMENT = 0.01
#: evaluations up to which every element of the curvature is measured; above, it is sampled
WHOLE = 300
#: of the sample: vectors for each element, and products of each with the curvature
VECTORS, PRODUCTS = 3, 24
#: structures in one evaluation
TOGETHER = 16
#: eV/Å² and dalton in 1/fs²
PER_DALTON = 9.64853322e-3
#: structures with which an evaluation's time is measured
FEW, MANY = 1, 8

#: displacements (S, 3N), in coordinates times the root of the mass -> the curvature and its part of Δ times them
Products = Callable[[FloatArray], tuple[FloatArray, FloatArray]]


def vibrations(potential: Potential, frame: Frame, names: Sequence[str], masses: FloatArray, seed: int = 0) -> Modes:
    """The vibrations of a structure. names: of its atoms, by which averages are told. masses: dalton.

    Up to a hundred atoms all of them; of more a sample, by Lanczos' method from random displacements of one element
    each, which has the averages over that element at a cost that does not grow with the number of atoms.
    """
    products = _products(potential, frame, masses)
    kinds = {name: np.repeat(np.array(names) == name, 3) for name in dict.fromkeys(names)}
    counts = {name: int(where.sum()) // 3 for name, where in kinds.items()}
    size = 3 * len(masses)
    if 2 * size <= WHOLE:
        total, delta = products(np.eye(size))
        omega2, vectors = np.linalg.eigh((total + total.T) / 2)
        of_delta = np.einsum("ij,ik,kj->j", vectors, delta, vectors)
        weights = {name: (vectors[where] ** 2).sum(axis=0) / where.sum() for name, where in kinds.items()}
        return Modes(omega2, of_delta, weights, counts, np.abs(np.linalg.eigvalsh((delta + delta.T) / 2)).max())
    rng = np.random.default_rng(seed)
    starts = np.array([where * rng.normal(size=size) for where in kinds.values() for _ in range(VECTORS)])
    omega2, of_delta, weight = lanczos(products, starts, PRODUCTS)
    owner = np.repeat(np.arange(len(kinds)), VECTORS)[:, None]
    weights = {name: (np.where(owner == k, weight, 0) / VECTORS).ravel() for k, name in enumerate(kinds)}
    # Δ's own extremes are not in the vibrations of the sum, of which each has an average of Δ over many molecules
    most = 0.0
    if of_delta.any():
        most = np.abs(lanczos(lambda vectors: products(vectors)[::-1], starts[::VECTORS], PRODUCTS)[0]).max()
    return Modes(omega2.ravel(), of_delta.ravel(), weights, counts, float(most))


def lanczos(products: Products, starts: FloatArray, steps: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Eigenvalues, the part of Δ in each, and their weights in the starts: (S, steps) each; of starts (S, 3N).

    Sum of weight x f(eigenvalue) is the start's expectation of f(curvature) (Golub and Meurant's quadrature).
    """
    steps = min(steps, starts.shape[1])
    basis = [starts / np.linalg.norm(starts, axis=1, keepdims=True)]
    of_total, of_delta = [], []
    for step in range(steps):
        total, delta = products(basis[-1])
        of_total.append(total)
        of_delta.append(delta)
        new = total
        if step + 1 == steps:
            break
        for _ in range(2):  # twice is enough to stay orthogonal
            for vector in basis:
                new = new - (new * vector).sum(axis=1, keepdims=True) * vector
        norm = np.linalg.norm(new, axis=1, keepdims=True)
        # what has no force has no other vector: zeros, of no weight, are added to it
        basis.append(new / np.where(norm > 0, norm, 1.0))
    space = np.array(basis)
    small = np.einsum("asi,bsi->sab", space, np.array(of_total))
    values, vectors = np.linalg.eigh((small + np.swapaxes(small, 1, 2)) / 2)
    small_delta = np.einsum("asi,bsi->sab", space, np.array(of_delta))
    return values, np.einsum("saj,sab,sbj->sj", vectors, small_delta, vectors), vectors[:, 0] ** 2


def _products(potential: Potential, frame: Frame, masses: FloatArray) -> Products:
    root = np.repeat(np.sqrt(masses), 3)
    apart = potential.baseline is not None and bool(potential.models)

    def call(vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        moves = vectors / root
        largest = np.abs(moves).max(axis=1, keepdims=True)
        scale = DISPLACEMENT / np.where(largest > 0, largest, 1.0)
        frames = [
            replace(frame, positions=frame.positions + sign * move.reshape(-1, 3))
            for move in moves * scale
            for sign in (1, -1)
        ]
        total, delta = [], []
        for k in range(0, len(frames), TOGETHER):
            found = potential.evaluate(frames[k : k + TOGETHER], force_spread=False)
            total.append(found.forces.reshape(-1, 2, len(root)))
            if apart and found.delta is not None:
                delta.append(found.delta.forces.reshape(-1, 2, len(root)))

        def curved(forces: list[FloatArray]) -> FloatArray:
            both = np.concatenate(forces)
            return np.asarray(PER_DALTON * (both[:, 1] - both[:, 0]) / (2 * scale) / root)

        return curved(total), curved(delta) if delta else np.zeros_like(vectors)

    return call


def cost(potential: Potential, frame: Frame, every: int) -> Cost:
    """What an evaluation takes on this machine. every: as `machine.timed` has it."""
    few, many = (timed(potential, [frame] * count, every)[0] for count in (FEW, MANY))
    each = max((many - few) / (MANY - FEW), 0.0)
    return Cost(max(few - each * FEW, 0.0), each) if each else Cost(few, 0.0)
