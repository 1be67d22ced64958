"""Which of the waiting frames to label: farthest-point selection on a model's features, weighted by uncertainty.

The features are MACE's own: the scalar node features of all layers, one vector per atom, whitened by the covariance of
the atoms of its element, so that all directions count alike. An atom's distance is that of its features from the
nearest labelled atom of the same element; a frame's score is the largest product of distance and force spread of its
atoms. The frame with the highest score is taken, its atoms count as labelled from then on, and so on (Imbalzano et al.,
J. Chem. Phys. 148, 241730, 2018, with atoms in place of structures).

Where the spread is not known, as for frames that the user added, the median of the others is used. For an atom whose
novelty is above 1 (`potential.novelty`) the spread means little, since members can agree where all are wrong: the
largest of all waiting atoms is used, so that among such atoms the distance alone decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beadwork.events import NOVELTY_EDGE
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.harvest.queue import LABELLED, Queue
from beadwork.harvest.row import Row
from beadwork.label.label import computed
from beadwork.potential.bundle import check
from beadwork.potential.features import features

#: fraction of the mean variance of an element's features: smaller variances are raised to this
VARIANCE_FLOOR = 3e-2
#: random choices with which the report compares
RANDOM_CHOICES = 10


@dataclass(frozen=True, slots=True)
class Choice:
    """order: indices of the chosen frames, the highest score first.

    Coverage is the mean, over all atoms of the waiting frames, of the distance in features to the nearest labelled or
    chosen atom of the same element. before, after: of this choice. random: the mean of random choices of the same size.
    frames_random: how many frames a random choice needs on average for the same coverage; None where three times as
    many are not enough.
    """

    order: tuple[int, ...]
    before: float
    after: float
    random: float
    frames_random: int | None

    def __str__(self) -> str:
        needed = self.frames_random or f"more than {3 * len(self.order)}"
        return (
            f"{len(self.order)} frames chosen: coverage {self.before:.3g} -> {self.after:.3g}, a random choice reaches "
            f"{self.random:.3g} and needs {needed} frames for as much"
        )


def choose(
    waiting: Sequence[Frame],
    spreads: Sequence[FloatArray] | None,
    labelled: Sequence[Frame],
    model: Path,
    most: int,
    parts: Sequence[Sequence[int] | None] | None = None,
    novelty: Sequence[FloatArray | None] | None = None,
) -> Choice:
    """Choose at most `most` of the waiting frames.

    spreads: force spread of each atom of each waiting frame, eV/Å; None counts all alike, and where it is NaN (frames
    that the user has brought) the median of the others counts. labelled: structures that have labels. model: the bundle
    whose features tell environments apart. parts: the atoms of each waiting frame that a label would hold, where a
    cluster is cut out of it: only these count, and are covered by it; None for all. novelty: of each atom of each
    waiting frame, None where it is not known; above NOVELTY_EDGE the largest spread of all counts. Raises ModelError
    for a bundle that cannot say its features, or does not know an element.
    """
    if not waiting or most < 1:
        return Choice((), 0.0, 0.0, 0.0, 0)
    vectors, element, owner = features([*waiting, *labelled], check(model))
    new = owner < len(waiting)
    # by the labelled atoms: far from what is known is what a label is wanted for
    vectors = _whitened(vectors, element, ~new)
    # atoms that the cluster would not contain get no label from this frame
    held = _held(waiting, parts)
    pool, kind, frame = vectors[new][held], element[new][held], owner[new][held]
    # an atom counts by how uncertain it is: a far one on which the members agree is not wanted first
    weight = np.ones(len(pool)) if spreads is None else np.concatenate(spreads)[held]
    known = np.isfinite(weight)
    weight = np.where(known, weight, np.median(weight[known]) if known.any() else 1.0)
    if novelty is not None:
        of_frames = [np.zeros(len(f.numbers)) if of is None else of for f, of in zip(waiting, novelty, strict=True)]
        weight[np.concatenate(of_frames)[held] > NOVELTY_EDGE] = weight.max()
    start = np.full(len(pool), np.inf)
    # what is labelled already is no news
    _cover(start, pool, kind, vectors[~new], element[~new])
    # without a labelled atom of an element the distance is the largest that occurs, so that such atoms come first
    far = ~np.isfinite(start)
    start[far] = np.linalg.norm(pool - pool.mean(axis=0), axis=1).max() * 2
    distance = start.copy()
    order: list[int] = []
    for _ in range(min(most, len(waiting))):
        # a frame is worth its most wanted atom: a sum would prefer large frames
        counts = np.maximum.reduceat(distance * weight, np.flatnonzero(np.diff(frame, prepend=-1)))
        counts[order] = -1.0  # never a frame twice
        best = int(counts.argmax())
        order.append(best)
        # its atoms count as labelled from now on, so that the next frame teaches something else
        _cover(distance, pool, kind, pool[frame == best], kind[frame == best])
    # the gain over a random choice is reported, because only that justifies choosing
    rng = np.random.default_rng(0)
    # three times as many frames: beyond that "more than" is all that matters
    length = min(len(waiting), 3 * len(order))
    curves = np.empty((RANDOM_CHOICES, length))
    for curve in curves:
        random = start.copy()
        for place, n in enumerate(rng.permutation(len(waiting))[:length]):
            _cover(random, pool, kind, pool[frame == n], kind[frame == n])
            curve[place] = random.mean()
    mean = curves.mean(axis=0)
    after = float(distance.mean())
    enough = np.flatnonzero(mean <= after + 1e-12)
    needed = int(enough[0]) + 1 if len(enough) else None
    return Choice(tuple(order), float(start.mean()), after, float(mean[len(order) - 1]), needed)


def from_queue(
    queue: Queue,
    rows: Sequence[Row],
    model: Path,
    most: int,
    part: Callable[[Row], Sequence[int] | None] = lambda row: None,
    whose: str = "both",
) -> tuple[list[int], Choice | None]:
    """Those of these rows to label, the most wanted first, against the labels that the queue holds.

    rows: the candidates (`selection.possible_rows`). part: the atoms of a row that its label would contain, None for
    all. whose: the novelty that counts, that of 'baseline', 'delta' or 'both'. Where there are no more than `most`,
    all, in their order, and no choice. Raises LabelError for a row without a good label, and otherwise as `choose`.
    """
    if len(rows) <= most:
        return [row.id for row in rows], None
    # the structures that were computed: of a frame whose cluster was cut only that cluster is known
    known = [computed(row)[0] for row in queue.rows(status=LABELLED)]
    frames, spreads = [row.kept.frame for row in rows], [row.kept.force_spread for row in rows]
    novelty = [row.kept.novelty_of(whose) for row in rows]
    choice = choose(frames, spreads, known, model, most, [part(row) for row in rows], novelty)
    return [rows[k].id for k in choice.order], choice


def _held(waiting: Sequence[Frame], parts: Sequence[Sequence[int] | None] | None) -> NDArray[np.bool_]:
    """Which atoms of the waiting frames, one after another, their labels would hold."""
    masks = []
    for frame, part in zip(waiting, parts or [None] * len(waiting), strict=True):
        mask = np.full(len(frame.numbers), part is None)
        if part is not None:
            mask[list(part)] = True
        masks.append(mask)
    return np.concatenate(masks)


def _whitened(vectors: FloatArray, element: IntArray, labelled: NDArray[np.bool_]) -> FloatArray:
    """Each element's vectors with unit covariance of its labelled atoms; of all, where few are labelled."""
    found = np.empty_like(vectors)
    for z in np.unique(element):
        mine = element == z
        known = mine & labelled
        # a covariance of fewer vectors than twice their dimension is of noise
        base = vectors[known if known.sum() >= 2 * vectors.shape[1] else mine]
        away = base - base.mean(axis=0)
        # principal axes: features of one layer are strongly correlated
        values, axes = np.linalg.eigh(away.T @ away / len(base))
        # directions of almost no variance are noise of few atoms, and whitening would make them the largest
        found[mine] = vectors[mine] @ (axes / np.sqrt(np.maximum(values, max(VARIANCE_FLOOR * values.mean(), 1e-18))))
    return found


def _cover(distance: FloatArray, pool: FloatArray, kind: IntArray, by: FloatArray, by_kind: IntArray) -> None:
    """Lower each atom's distance to that from the nearest of the given atoms of its element."""
    from scipy.spatial import cKDTree

    for z in np.unique(by_kind):
        mine = kind == z
        if mine.any():
            near, _ = cKDTree(by[by_kind == z]).query(pool[mine])
            distance[mine] = np.minimum(distance[mine], near)
