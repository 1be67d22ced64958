"""Loops over pairs of atoms, compiled by Numba: with NumPy array operations they took 2.5 times as long, and more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from beadwork.frame import FloatArray, IntArray


def _compiled(function: Callable[..., int]) -> Callable[..., int]:
    """Compile, and keep the machine code beside this file or in the user's cache folder where that is possible."""
    try:
        return njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # Numba found no folder that it may write to: compile in every process
        return njit(nogil=True)(function)  # type: ignore[no-any-return]


@_compiled
def within(
    positions: FloatArray,
    images: FloatArray,
    starts: IntArray,
    neighbor: NDArray[np.int32],
    image: NDArray[np.int32],
    cutoff: float,
    first: int,
    first_image: int,
    out_neighbor: NDArray[np.int32],
    out_image: NDArray[np.int32],
    out_vectors: FloatArray,
    out_squares: FloatArray,
    out_degree: IntArray,
) -> int:
    """Write the pairs of one structure that are closer than the cutoff, and return how many (E) there are.

    positions: (N, 3) Å. Atom i has the candidates starts[i] to starts[i + 1] (N + 1,): atom neighbor[p] (P,), moved by
    images[image[p]] (K, 3) Å. The outputs get neighbor + first, image + first_image, the vector (Å), its square (Å²),
    and (N,) how many each atom has. They must have room for one more than E: every candidate is written, and the next
    one overwrites it where it was too far. That takes two thirds of the time of a branch. Nothing is checked.
    """
    limit = cutoff * cutoff
    # unsigned: for a signed index Numba checks at each access whether it counts from the end, two fifths of the time
    end = np.uint64(0)
    for i in range(len(positions)):
        begin = end
        x, y, z = positions[i, 0], positions[i, 1], positions[i, 2]
        for p in range(np.uint64(starts[i]), np.uint64(starts[i + 1])):
            j, k = np.uint64(neighbor[p]), np.uint64(image[p])
            dx = positions[j, 0] - x + images[k, 0]
            dy = positions[j, 1] - y + images[k, 1]
            dz = positions[j, 2] - z + images[k, 2]
            square = dx * dx + dy * dy + dz * dz
            out_neighbor[end] = j + np.uint64(first)
            out_image[end] = k + np.uint64(first_image)
            out_vectors[end, 0] = dx
            out_vectors[end, 1] = dy
            out_vectors[end, 2] = dz
            out_squares[end] = square
            end += np.uint64(square < limit)
        out_degree[i] = end - begin
    return int(end)


@_compiled
def shortest(
    degree: IntArray,
    neighbor: NDArray[np.int32],
    lengths: FloatArray,
    kind: IntArray,
    out: FloatArray,
) -> int:
    """Lower out[i, kind[j]] to the length of each edge from atom i to atom j that is shorter; return the edges' number.

    degree (A,), neighbor and lengths (E,): as a `Graph` has them. kind: (A,), each below K. out: (A, K). Nothing is
    checked.
    """
    end = np.uint64(0)
    for i in range(len(degree)):
        begin, end = end, end + np.uint64(degree[i])
        for edge in range(begin, end):
            k = np.uint64(kind[np.uint64(neighbor[edge])])
            out[i, k] = min(out[i, k], lengths[edge])
    return int(end)
