"""Build one graph from many structures: every pair of atoms closer than a cutoff, for all beads at once.

`build` makes a graph without history. `GraphBuilder` keeps candidate pairs (Verlet lists with a skin) from step to step
and shares them between structures that lie close together, as the beads of a ring polymer do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from vesin import NeighborList

from beadwork.errors import GeometryError
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.potential.pair_kernel import within

#: Å; closer than any two nuclei come (H2 at its turning point under 100 GPa is above 0.5 Å)
MIN_DISTANCE = 0.2
#: more neighbours than an atom has in any matter: within 6 Å they would be a hundred times as dense as water
MAX_NEIGHBOURS = 10_000
#: cells into which vesin 0.6 sorts atoms, at most
MAX_CELLS = 1e5
#: Å; an atom may travel half of it, from its positions in the structures for which the list was made
SKIN = 0.4
#: Å; structures within this distance of each other, atom by atom, share a list: the beads of a ring polymer do, and one
#: list for all of them is built in the time of one
SHARE_DISTANCE = 1.6
#: lists that were not used in so many builds are dropped
UNUSED_BUILDS = 200
#: at most so many lists, dropping those unused for longest: a structure without a list is compared with each of them
MAX_LISTS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """S systems of A atoms in all, and E directed edges between atoms closer than the cutoff.

    numbers: (A,) atomic numbers. positions: (A, 3) Å, as given. cells: (S, 3, 3) Å, a lattice vector a row.
    pbc: (S, 3). ptr: (S + 1,) system s owns atoms ptr[s] to ptr[s + 1]. system: (A,). beads: (S,), None where unknown.
    degree: (A,) edges of each atom as their center; edges are sorted by it. neighbor: (E,) the atoms at their other
    ends. vectors: (E, 3) Å, from the center to the neighbor's image. lengths: (E,) Å. Both directions of every pair
    are there. images: (K, 3) Å, by which neighbors are moved; system s has the rows image_ptr[s] to image_ptr[s + 1].
    image: (E,) the row of each edge, so that vectors = positions[neighbor] - positions[center] + images[image].
    closest: (S,) Å, the smallest distance between two atoms of each system, inf where no two are within the cutoff.
    states: (S,) charge (e) and unpaired electrons of each system, None where they are not said.
    """

    numbers: IntArray
    positions: FloatArray
    cells: FloatArray
    pbc: NDArray[np.bool_]
    ptr: IntArray
    system: IntArray
    beads: tuple[int | None, ...]
    cutoff: float
    neighbor: NDArray[np.int32]
    vectors: FloatArray
    lengths: FloatArray
    degree: IntArray
    image: NDArray[np.int32]
    images: FloatArray
    image_ptr: IntArray
    closest: FloatArray
    states: tuple[tuple[int | None, int | None], ...]

    @property
    def center(self) -> NDArray[np.int32]:
        """(E,): the atom that each edge starts from, computed at each call: engines that do not need it save 4 E
        bytes."""
        return np.repeat(np.arange(len(self.numbers), dtype=np.int32), self.degree)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def where(self, system: int) -> str:
        """Name a system in a message: its bead where it is known."""
        bead = self.beads[system]
        if bead is not None:
            return f"bead {bead}"
        return f"structure {system} of {len(self)}" if len(self) > 1 else "the structure"

    def within(self, cutoff: float) -> Graph:
        """Return the graph of a shorter cutoff (Å)."""
        if cutoff >= self.cutoff:
            return self
        keep = np.flatnonzero(self.lengths < cutoff)
        return replace(
            self,
            cutoff=cutoff,
            neighbor=self.neighbor[keep],
            vectors=self.vectors[keep],
            lengths=self.lengths[keep],
            degree=np.bincount(self.center[keep], minlength=len(self.numbers)),
            image=self.image[keep],
            closest=np.where(self.closest < cutoff, self.closest, np.inf),
        )

    def part(self, first: int, last: int) -> Graph:
        """Return systems first to last - 1 as a graph of their own."""
        if first == 0 and last == len(self):
            return self
        low, high = int(self.ptr[first]), int(self.ptr[last])
        start, stop = (int(e) for e in self.edge_ptr()[[first, last]])
        one, end = int(self.image_ptr[first]), int(self.image_ptr[last])
        return Graph(
            self.numbers[low:high],
            self.positions[low:high],
            self.cells[first:last],
            self.pbc[first:last],
            self.ptr[first : last + 1] - low,
            self.system[low:high] - first,
            self.beads[first:last],
            self.cutoff,
            self.neighbor[start:stop] - np.int32(low),
            self.vectors[start:stop],
            self.lengths[start:stop],
            self.degree[low:high],
            self.image[start:stop] - np.int32(one),
            self.images[one:end],
            self.image_ptr[first : last + 1] - one,
            self.closest[first:last],
            self.states[first:last],
        )

    def pieces(self, max_edges: int | None) -> list[tuple[int, int]]:
        """Runs (first, last) of systems with at most max_edges edges together; a single system is never cut.

        A message-passing model needs a whole system at once: an atom's energy depends on its neighbours' neighbours.
        """
        if max_edges is None or len(self.neighbor) <= max_edges:
            return [(0, len(self))]
        edges = self.edge_ptr()
        pieces, first = [], 0
        while first < len(self):
            last = int(np.searchsorted(edges, edges[first] + max_edges, side="right")) - 1
            last = min(max(last, first + 1), len(self))
            pieces.append((first, last))
            first = last
        return pieces

    def edge_ptr(self) -> IntArray:
        """(S + 1,): system s owns edges edge_ptr[s] to edge_ptr[s + 1]."""
        return np.concatenate(([0], np.cumsum(self.degree)))[self.ptr]


def build(frames: Sequence[Frame], cutoff: float) -> Graph:
    """Build the graph of all frames without kept lists; cutoff in Å. Raises GeometryError."""
    return GraphBuilder(cutoff, skin=0.0, share=0.0).build(frames)


class GraphBuilder:
    """Builds graphs step after step, and keeps its pair lists as long as they are complete.

    A list holds the pairs of a reference structure that may come closer than the cutoff while every atom a stays
    within its own slack s_a: those with |r_ij| < cutoff + s_i + s_j. Take a structure with the cell h = h0 F and
    positions r = r0 F + d (up to a common translation), and let m be the smallest singular value of F. A pair that is
    closer than the cutoff there had |r_ij| < (cutoff + |d_i| + |d_j|) / m in the reference. So no pair is missed as
    long as |d_a| <= m s_a - (1 - m) cutoff / 2 for all atoms, whatever the cell did.
    The exact cutoff is applied to every structure at every step, so the edges are those of a fresh build: kept lists
    change the time, never the result.

    cutoff: Å. skin: Å, twice the slack in excess of what is needed when a list is made. share: Å.
    built, kept: how many structures so far had a list made for them when they came, or found one. prefetched: for how
    many a list was made before they came.
    """

    def __init__(self, cutoff: float, skin: float = SKIN, share: float = SHARE_DISTANCE) -> None:
        self.cutoff = cutoff
        self.skin = skin
        self.share = share
        self.built = 0
        self.kept = 0
        self.prefetched = 0
        # kept from build to build; `_latest` remembers which frame used which, for `prefetch`
        self._lists: list[_Candidates] = []
        self._latest: list[tuple[Frame, _Candidates]] = []
        self._calls = 0

    def build(self, frames: Sequence[Frame]) -> Graph:
        """Return the graph of these frames, in this order; any number of them, in any order from call to call.

        Raises GeometryError for what `Frame.check` refuses, and for atoms closer than `MIN_DISTANCE`.
        """
        if not frames:
            raise GeometryError("there are no structures to evaluate", "pass at least one frame")
        _check(frames)
        self._calls += 1
        if self.cutoff > 0:
            chosen = self._choose(frames)
            self._lists = [c for c in self._lists if self._calls - c.last_used <= UNUSED_BUILDS]
            if len(self._lists) > (
                most := max(MAX_LISTS, 2 * len(frames))
            ):  # atoms that i-PI folds make one a crossing
                self._lists = sorted(self._lists, key=lambda c: -c.last_used)[:most]
            graph = _assemble(frames, chosen, self.cutoff)
            if self.skin == 0:  # a list without slack is right for its own frames alone
                self._lists = []
            self._latest = list(zip(frames, chosen, strict=True))
        else:  # a harmonic test potential has no pairs
            graph = _assemble(frames, [], 0.0)
        return graph

    def prefetch(self) -> None:
        """Make the lists that the next step will need if the atoms move as far as in the last one.

        Called while i-PI integrates, so that the next evaluation does not wait for a new list.
        """
        for old in self._lists.copy():
            frames = [frame for frame, candidates in self._latest if candidates is old]
            if frames and 0 <= old.margin < old.last_step:
                new = _Candidates(frames, self.cutoff, self.skin)
                new.last_used = self._calls
                self._lists.insert(0, new)  # before the old one, which other beads may still need
                self.prefetched += len(frames)
        self._latest = []

    def _choose(self, frames: Sequence[Frame]) -> list[_Candidates]:
        """A complete list for each frame; lists that are missing are made."""
        chosen: list[_Candidates | None] = [None] * len(frames)
        # the most recently used first: it nearly always covers all frames
        for candidates in sorted(self._lists, key=lambda c: -c.last_used):
            left = [k for k in range(len(frames)) if chosen[k] is None and candidates.same_kind(frames[k])]
            if left:
                margins = candidates.margins([frames[k] for k in left])
                covered = margins >= 1e-7  # above the rounding of coordinates, on the safe side
                if covered.any():
                    candidates.used(self._calls, float(margins[covered].min()))
                for k in np.array(left)[covered]:
                    chosen[k] = candidates
            if all(c is not None for c in chosen):
                break
        missing = [k for k in range(len(frames)) if chosen[k] is None]
        self.kept += len(frames) - len(missing)
        self.built += len(missing)
        while missing:
            group = self._group(frames, missing)
            candidates = _Candidates([frames[k] for k in group], self.cutoff, self.skin)
            candidates.last_used = self._calls
            self._lists.append(candidates)
            for k in group:
                chosen[k] = candidates
            missing = [k for k in missing if chosen[k] is None]
        return [c for c in chosen if c is not None]

    def _group(self, frames: Sequence[Frame], missing: Sequence[int]) -> list[int]:
        """Those of the missing frames that lie close to the first of them."""
        first = frames[missing[0]]
        if self.share == 0:
            return [missing[0]]
        group = []
        for k in missing:
            frame = frames[k]
            if frame.pbc == first.pbc and len(frame.numbers) == len(first.numbers):
                near = np.array_equal(frame.cell, first.cell)  # replicas at other pressures get lists of their own
                if near and np.abs(frame.positions - first.positions).max() <= self.share:
                    group.append(k)
        return group


class _Candidates:
    """Candidate pairs of a reference structure, for the frames that it was made for and those that stay near them.

    The frames have one number of atoms, one cell and one pbc; each atom gets the slack that it needs in these frames,
    and half of the skin (Å).
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float, skin: float) -> None:
        first = frames[0]
        self.cutoff = cutoff
        self.cell = np.array(first.cell)
        self.pbc = first.pbc
        self.full_cell = complete(first.cell, first.pbc)
        self.last_used = 0
        # Å: how much further the atoms of the latest frames may move, and how much of that their last step took
        self.margin, self.last_step = skin / 2, 0.0
        # the mean of the beads is their centroid, from which they are closest; light atoms get a large slack and heavy
        # ones a small one, so that pairs of heavy atoms add few candidates
        self.reference = np.mean([f.positions for f in frames], axis=0)
        # 1e-6 Å: rounding errors of float64 coordinates as large as 1e6 Å, the most that `Frame.check` allows, are less
        self.slack = self._displacements(frames)[0].max(axis=0) + skin / 2 + 1e-6
        reach = cutoff + 2 * self.slack.max()
        _check_volume(first, self.reference, self.full_cell, reach)
        _check_extent(first, self.reference, self.full_cell, reach)
        search = NeighborList(cutoff=reach, full_list=True, sorted=True, n_threads=1)
        pairs, shifts, lengths = search.compute(self.reference, self.full_cell, np.array(self.pbc), "PSd", copy=True)
        center, neighbor = pairs.T.astype(np.int_)
        near = np.flatnonzero(lengths <= cutoff + 1e-6 + self.slack[center] + self.slack[neighbor])
        self.neighbor = neighbor[near].astype(np.int32)
        # the periodic images that occur, (K, 3), and which of them each neighbor lies in; counted in a
        # block of cells and not sorted: a list is rebuilt in a third of the time
        cells = shifts[near].astype(np.int_)
        low, high = cells.min(axis=0, initial=0), cells.max(axis=0, initial=0)
        block = tuple(high - low + 1)
        if np.prod(block, dtype=np.float64) <= 1000 + 4 * len(near):
            image = np.ravel_multi_index(tuple((cells - low).T), block)
            used = np.flatnonzero(np.bincount(image))
            self.image = np.searchsorted(used, image).astype(np.int32)
            self.shifts = np.array(np.unravel_index(used, block)).T + low.astype(np.float64)
        else:  # unwrapped molecules that have diffused far apart: the block would be huge and nearly empty
            used, image = np.unique(cells, axis=0, return_inverse=True)
            self.image, self.shifts = image.ravel().astype(np.int32), used.astype(np.float64)
        self.starts = np.concatenate(([0], np.cumsum(np.bincount(center[near], minlength=len(self.reference)))))

    def same_kind(self, frame: Frame) -> bool:
        return frame.pbc == self.pbc and len(frame.numbers) == len(self.reference)

    def used(self, call: int, margin: float) -> None:
        """Record that this call's frames use the list; margin: of the frame with the least left."""
        self.last_used = call
        self.margin, self.last_step = margin, self.margin - margin

    def margins(self, frames: Sequence[Frame]) -> FloatArray:
        """(S,) Å: how much further the atoms of each frame may move; negative where the list may lack a pair of it."""
        away, stretch = self._displacements(frames)
        slack = np.outer(stretch, self.slack) - 0.5 * (1 - stretch[:, None]) * self.cutoff
        return np.asarray((slack - away).min(axis=1))

    def _displacements(self, frames: Sequence[Frame]) -> tuple[FloatArray, FloatArray]:
        """(S, A) Å from the reference strained with the cell, and (S,) the smallest stretch of the cell."""
        away = np.array([f.positions for f in frames])
        cells = np.array([f.cell for f in frames])
        if (cells == self.cell).all():  # at constant volume no inverse and no SVD are needed
            away -= self.reference
            stretch = np.ones(len(frames))
        else:
            full = np.array([complete(f.cell, f.pbc) for f in frames])
            deform = np.linalg.inv(self.full_cell) @ full
            stretch = np.linalg.svd(deform, compute_uv=False)[:, -1]
            away -= self.reference @ deform
        # a drift of the whole system changes no distance
        away -= away.mean(axis=1, keepdims=True)
        return np.sqrt(np.einsum("sai,sai->sa", away, away)), stretch


def _assemble(frames: Sequence[Frame], chosen: Sequence[_Candidates], cutoff: float) -> Graph:
    """Apply the exact cutoff to every frame's candidates."""
    sizes = np.array([len(f.numbers) for f in frames])
    ptr = np.concatenate(([0], np.cumsum(sizes)))
    capacity = sum(len(c.neighbor) for c in chosen) + 1  # one more than there are, see `pair_kernel.within`
    neighbor, image = np.empty(capacity, dtype=np.int32), np.empty(capacity, dtype=np.int32)
    image_ptr = np.concatenate(([0], np.cumsum([len(c.shifts) for c in chosen] or [0] * len(frames))))
    images = np.empty((int(image_ptr[-1]), 3))
    vectors = np.empty((capacity, 3))
    squares = np.empty(capacity)
    degree = np.zeros(int(ptr[-1]), dtype=np.int_)
    closest = np.full(len(frames), np.inf)
    end = 0
    for s, (frame, candidates) in enumerate(zip(frames, chosen, strict=False)):
        mine = images[image_ptr[s] : image_ptr[s + 1]]
        mine[:] = candidates.shifts @ np.where(np.array(frame.pbc)[:, None], frame.cell, 0.0)
        start, end = (
            end,
            end
            + within(
                frame.positions,
                mine,
                candidates.starts,
                candidates.neighbor,
                candidates.image,
                cutoff,
                ptr[s],
                image_ptr[s],
                neighbor[end:],
                image[end:],
                vectors[end:],
                squares[end:],
                degree[ptr[s] : ptr[s + 1]],
            ),
        )
        np.sqrt(squares[start:end], out=squares[start:end])  # frame by frame it stays in the processor's cache
        closest[s] = squares[start:end].min(initial=np.inf)
    graph = Graph(
        np.concatenate([f.numbers for f in frames]).astype(np.int_, copy=False),
        np.concatenate([f.positions for f in frames]),
        np.array([f.cell for f in frames]),
        np.array([f.pbc for f in frames], dtype=np.bool_),
        ptr,
        np.repeat(np.arange(len(frames)), sizes),
        tuple(f.bead for f in frames),
        cutoff,
        neighbor[:end],
        vectors[:end],
        squares[:end],
        degree,
        image[:end],
        images,
        image_ptr,
        closest,
        tuple((f.charge, f.spin) for f in frames),
    )
    _check_distances(graph)
    return graph


def complete(cell: FloatArray, pbc: tuple[bool, bool, bool]) -> FloatArray:
    """The cell with unit vectors, perpendicular to the periodic ones, where it is not periodic."""
    if all(pbc):
        return cell
    full = np.where(np.array(pbc)[:, None], cell, 0.0)
    count = sum(pbc)
    # right singular vectors of singular value 0 span what is perpendicular to the periodic directions
    complement = np.linalg.svd(full)[2][count:]
    full[~np.array(pbc)] = complement
    # the sign of a singular vector is arbitrary: with a fixed orientation the strain between two cells has no
    # reflection
    if np.linalg.det(full) < 0:
        full[int(np.argmin(pbc))] *= -1
    return full


def _check(frames: Sequence[Frame]) -> None:
    """`Frame.check` for all frames, in one pass over all coordinates where nothing is wrong."""
    together = np.concatenate([f.positions.ravel() for f in frames])
    suspicious = together.size == 0 or not np.abs(together).max() < 1e6
    seen: Frame | None = None
    for frame in frames:
        if frame.positions.shape != (len(frame.numbers), 3) or frame.cell.shape != (3, 3):
            raise GeometryError(
                f"a structure has {len(frame.numbers)} atomic numbers, positions of shape {frame.positions.shape} and "
                f"a cell of shape {frame.cell.shape}",
                "they must be (n,), (n, 3) and (3, 3)",
            )
        # beads share a cell, and one that was checked a moment ago need not be checked again
        same = seen is not None and seen.pbc == frame.pbc and bool((seen.cell == frame.cell).all())
        if suspicious or not same or len(frame.numbers) == 0:
            frame.check()
        seen = frame


def _check_volume(frame: Frame, positions: FloatArray, full_cell: FloatArray, reach: float) -> None:
    """Refuse a collapsed cell before its pairs take time and memory: their number is estimated from its volume.

    positions: (n, 3) Å. full_cell: with unit vectors where it is not periodic. Along its p periodic directions a sphere
    of radius reach (Å) covers the length, area or volume of many cells; across them it may not contain all atoms.
    """
    pbc = np.array(frame.pbc)
    if not (periodic := int(pbc.sum())):
        return
    cell = abs(float(np.linalg.det(full_cell)))
    ball = 4 / 3 * np.pi * reach**3
    across = float(np.ptp(positions @ full_cell[~pbc].T, axis=0).prod())
    part = min((2 * reach, np.pi * reach**2, ball)[periodic - 1], ball / max(across, 1e-9)) / cell
    if (neighbors := len(positions) * part) > MAX_NEIGHBOURS:
        where = "the structure" if frame.bead is None else f"bead {frame.bead}"
        raise GeometryError(
            f"the cell of {where} has collapsed: {cell ** (1 / periodic):.2g} Å along each periodic direction for "
            f"{len(positions)} atoms, some {neighbors:.0e} neighbours for each",
            "lower the time step, or look at the barostat and the cell of the start structure",
        )


def _check_distances(graph: Graph) -> None:
    """Refuse atoms on top of each other. Atoms that are merely too close are left to `potential.limits`."""
    if graph.closest.min(initial=np.inf) >= MIN_DISTANCE:
        return
    edge = int(np.argmin(graph.lengths))
    a, b = int(graph.center[edge]), int(graph.neighbor[edge])
    system = int(graph.system[a])
    first = int(graph.ptr[system])
    straight = graph.positions[a] - graph.positions[b]
    # too close through the boundary means a wrong cell more often than a wrong structure
    image = abs(np.linalg.norm(straight) - graph.lengths[edge]) > 1e-6
    raise GeometryError(
        f"atoms {a - first} and {b - first} of {graph.where(system)} are {graph.lengths[edge]:.2g} Å apart"
        f"{', one of them in a periodic image' if image else ''}, closer "
        f"than {MIN_DISTANCE} Å, where no model can be trusted",
        "lower the time step or check the start structure"
        f"{' and its cell, or for a cluster give --not-periodic' if image else ''}",
    )


def _check_extent(frame: Frame, positions: FloatArray, full_cell: FloatArray, reach: float) -> None:
    """Refuse what is long in some directions and short in others beyond all measure, as an exploded structure is.

    vesin puts the atoms into cells of the size of the reach (Å), and where there would be more than MAX_CELLS it takes
    fewer in each direction, in the same proportion; where that leaves less than one it divides by zero, which no
    Python survives. positions: (n, 3) Å. full_cell: with unit vectors where it is not periodic.
    """
    inverse = np.linalg.inv(full_cell)
    widths = 1 / np.linalg.norm(inverse, axis=0)
    extent = np.where(frame.pbc, widths, np.ptp(positions @ inverse, axis=0))
    cells = np.maximum(1.0, np.floor(extent / reach))
    if cells.prod() <= MAX_CELLS:
        return
    fewest = float(cells.min() * np.cbrt(MAX_CELLS / cells.prod()))
    if fewest < 2:  # one of them would do; rounding is left some room
        where = "the structure" if frame.bead is None else f"bead {frame.bead}"
        raise GeometryError(
            f"{where} extends over {' x '.join(f'{x:.3g}' for x in extent)} Å, too long for a neighbour list",
            "the simulation has exploded, or its cell has other units than were meant: look at the last frames kept",
        )
