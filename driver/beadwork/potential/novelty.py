"""How far an atom is from those that a model was trained on: novelty, 1 at the edge of training.

The committee's spread says how far its members disagree, and members trained on the same frames can agree where all of
them are wrong. Novelty asks another question: did the training frames have an atom like this one? Three measures, of
which the largest counts:

- **Features.** Of each element a Gaussian mixture p was fitted to the model's own node features x in training (the
  scalars of every layer). d = sqrt(2 (ln p_top - ln p(x))), where p_top is the density at the heart of the narrowest
  component; with one component d is the Mahalanobis distance. Novelty is d over its edge, the value that 0.01 % of the
  training atoms exceed when the mixture is fitted without their own block of frames.
- **Contacts**, which need no model: the distance to the nearest atom of each element, compared with its range in the
  training frames. 0 in the middle of the range, 1 a hundredth of an Å beyond its ends.
- **Averages** of the features over the atoms of an element in one structure: what all of them share, each a little of
  it, such as another density. They count where no atom of the structure is new by itself, or one stranger would make
  all its kind new; and no atom is less new than the average of its element.

Novelty is not an error estimate: a model may be accurate for an atom that it was not trained on, but nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beadwork.disk import reading
from beadwork.errors import ModelError
from beadwork.events import NOVELTY_EDGE
from beadwork.frame import FloatArray, IntArray
from beadwork.potential.graph import Graph
from beadwork.potential.pair_kernel import shortest
from beadwork.potential.threads import one_blas_thread

#: the largest value returned: the extras are JSON, which has no infinity
MAX_NOVELTY = 1000.0
#: Å; a range of contacts is extended by this at both ends: the extremes of finitely many atoms lie inside the range
#: that the same simulation would show if it went on
CONTACT_MARGIN = 0.01
#: of a feature from its mean, in the features' units
FARTHEST = 1e12
#: fraction of the cutoff: a contact that training never had within the cutoff counts as new when it is this much
#: shorter
UNSEEN_CONTACT_WIDTH = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """The features of one element's atoms in training: K Gaussians of F features.

    projection (F, K F), shift (K, F): x -> the whitened deviation x @ projection - shift from each component.
    height (K,): the logarithm of each component's weight times its density's factor, the largest being 0.
    edge: the distance that counts as 1.
    """

    projection: FloatArray
    shift: FloatArray
    height: FloatArray
    edge: float
    # what features are multiplied by, made once and not at every step: on the host, and on each device
    _centred: list[tuple[FloatArray, NDArray[np.float32]]] = field(default_factory=list, repr=False)
    _there: dict[torch.device, list[torch.Tensor]] = field(default_factory=dict, repr=False)

    def _operands(self) -> tuple[FloatArray, NDArray[np.float32]]:
        """A centre c (F,), and B (F + 1, K F) in float32 with (x - c, 1) @ B = x @ projection - shift.

        On a CPU float32 halves the time, and of a novelty three digits are read. But shifts are in the thousands where
        deviations are about 1, and float32 would lose four digits in their difference: so features count from the mean
        of one component, which leaves shifts of about 10 (3e-6 of a novelty).
        """
        if not self._centred:
            number = len(self.projection)
            top = int(self.height.argmax())
            whitening = self.projection[:, top * number : (top + 1) * number]
            # least squares, because a whitening of features that never vary has no inverse
            center = np.linalg.lstsq(whitening.T, self.shift[top], rcond=None)[0]
            rest = self.shift.reshape(-1) - center @ self.projection
            self._centred.append((center, np.vstack((self.projection, -rest)).astype(np.float32)))
        return self._centred[0]

    def distance(self, features: torch.Tensor) -> torch.Tensor:
        """(A,): d over the edge, of features (A, F) in float64; on their device."""
        device = features.device
        if device not in self._there:
            arrays = (self.projection, self.shift, self.height)
            self._there[device] = [torch.from_numpy(array).to(device) for array in arrays]
        projection, shift, height = self._there[device]
        # in place: arrays of atoms x components x features are most of what this costs
        away = (features @ projection).view(-1, *shift.shape)
        away -= shift
        away *= away
        log = torch.logsumexp(height - 0.5 * away.sum(-1), dim=1)
        # the density of several overlapping components can exceed the highest single one: no negative number under a
        # root
        return torch.sqrt(torch.clamp(-2 * log, min=0.0)) / self.edge

    def distance_on_host(self, features: FloatArray) -> FloatArray:
        """The same of an array, in float32: within 1e-5 of it."""
        center, matrix = self._operands()
        # a column of ones, so that the shift is part of the product: each pass over atoms x components x features
        # takes as long as everything else together
        centred = np.ones((len(features), len(matrix)), dtype=np.float32)
        # within what float32 can square: an exploding structure is infinitely new, and not NaN
        np.clip(features - center, -FARTHEST, FARTHEST, out=centred[:, :-1], casting="same_kind")
        with one_blas_thread():
            away = (centred @ matrix).reshape(len(features), *self.shift.shape)
        log = self.height - 0.5 * np.einsum("akf,akf->ak", away, away)
        top = log.max(axis=1)
        log -= top[:, None]
        return np.asarray(np.sqrt(np.maximum(-2 * (top + np.log(np.exp(log).sum(axis=1))), 0.0)) / self.edge)


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """The averages y of one element's F features over a training frame: y = m @ projection - shift.

    In y the atoms of one frame have unit variance, and without it the averages of frames would still differ by the
    variance between (F,): with n atoms of the element, d^2 is the mean over features of y^2 / (between + 1/n).
    projection (F, F), shift (F,). most: the largest n in training; larger structures are held to no finer scale.
    edge: the distance that counts as 1.
    """

    projection: FloatArray
    shift: FloatArray
    between: FloatArray
    most: int
    edge: float

    def distance(self, means: FloatArray, counts: IntArray) -> FloatArray:
        """(S,): d over the edge, of the means (S, F) over so many atoms (S,)."""
        y = means @ self.projection - self.shift
        variance = self.between + 1 / np.minimum(counts, self.most)[:, None]
        return np.asarray(np.sqrt((y**2 / variance).mean(axis=1)) / self.edge)

    def distance_on_device(self, features: torch.Tensor, of: torch.Tensor, systems: int) -> torch.Tensor:
        """(S,): the same on the device, of features (n, F) of the atoms that the systems `of` (n,) have; any number
        where a system has none."""
        between, projection, shift = (
            torch.from_numpy(array).to(features.device, non_blocking=True)
            for array in (self.between, self.projection, self.shift)
        )
        counts = features.new_zeros((systems, 1)).index_add(0, of, torch.ones_like(features[:, :1])).clamp(min=1.0)
        sums = features.new_zeros((systems, features.shape[1])).index_add(0, of, features)
        y = (sums / counts) @ projection - shift
        return torch.sqrt((y**2 / (between + 1 / counts.clamp(max=self.most))).mean(dim=1)) / self.edge


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """What one model's training frames looked like, atom by atom.

    elements: (n,) atomic numbers, ascending. mixtures: by atomic number, but for elements of a few atoms. averages: by
    atomic number, but for elements in a few frames; none where an older file has none. contacts: (n, n, 2) Å, the
    range of the distance from an atom of one element (first index) to the nearest of another; the cutoff where there
    was none.
    cutoff: Å, of the model. frames: the hash of the frames, prefixed. atoms: how many of each element there were.
    model: the hash of the model whose features the mixtures are of (`Card.hash`); empty where an older file has none.
    """

    elements: tuple[int, ...]
    mixtures: Mapping[int, Mixture]
    contacts: FloatArray
    cutoff: float
    frames: str
    atoms: Mapping[int, int]
    model: str = ""
    averages: Mapping[int, Average] = field(default_factory=dict)

    def novelty(self, features: torch.Tensor, graph: Graph) -> torch.Tensor:
        """(A,) in float64, on the features' device, without waiting for it.

        At most MAX_NOVELTY, which an element that was not in training gets; an element without a mixture has the
        novelty of its contacts.

        features: (A, F), the node features' scalars. graph: with this model's cutoff.
        """
        if features.device.type == "cpu":
            return torch.from_numpy(self._on_host(features.double().numpy(), graph))
        return self._on_device(features, graph)

    def _on_host(self, features: FloatArray, graph: Graph) -> FloatArray:
        # for one molecule twenty calls of PyTorch take longer than a compiled model
        found = np.where(np.isin(graph.numbers, self.elements), self.contact_novelty(graph), MAX_NOVELTY)
        for z, mixture in self.mixtures.items():
            mine = np.flatnonzero(graph.numbers == z)
            found[mine] = np.maximum(found[mine], mixture.distance_on_host(features[mine]))
        known = (np.maximum.reduceat(found, graph.ptr[:-1]) <= NOVELTY_EDGE)[graph.system]
        for z, average in self.averages.items():
            mine = np.flatnonzero((graph.numbers == z) & known)
            if len(mine):
                first = np.flatnonzero(np.diff(graph.system[mine], prepend=-1))
                counts = np.diff(first, append=len(mine))
                shared = average.distance(np.add.reduceat(features[mine], first) / counts[:, None], counts)
                found[mine] = np.maximum(found[mine], np.repeat(shared, counts))
        return np.minimum(found, MAX_NOVELTY)

    def _on_device(self, features: torch.Tensor, graph: Graph) -> torch.Tensor:
        device = features.device
        known = np.isin(graph.numbers, self.elements)
        found = torch.from_numpy(np.where(known, 0.0, MAX_NOVELTY)).to(device, non_blocking=True)
        for z, mixture in self.mixtures.items():
            mine = torch.from_numpy(np.flatnonzero(graph.numbers == z)).to(device, non_blocking=True)
            found[mine] = mixture.distance(features[mine].double())
        contacts = torch.from_numpy(self.contact_novelty(graph)).to(device, non_blocking=True)
        found = torch.maximum(found, contacts)
        of = torch.from_numpy(graph.system).to(device, non_blocking=True)
        known = found.new_zeros(len(graph)).index_add(0, of, (found > NOVELTY_EDGE).double()) == 0
        for z, average in self.averages.items():
            mine = torch.from_numpy(np.flatnonzero(graph.numbers == z)).to(device, non_blocking=True)
            shared = average.distance_on_device(features[mine].double(), of[mine], len(graph))
            found[mine] = torch.maximum(found[mine], torch.where(known, shared, 0.0)[of[mine]])
        return found.clamp(max=MAX_NOVELTY)

    def contact_novelty(self, graph: Graph) -> FloatArray:
        """(A,): how far the contacts of each atom are from the middle of their ranges; 1 at the ends."""
        low, high = self.contacts[..., 0], self.contacts[..., 1]
        # where training had no such contact, low and high are both the cutoff, and a range of width 0 would make any
        # distance just below it infinitely new
        half = np.where(low < self.cutoff, (high - low) / 2 + CONTACT_MARGIN, UNSEEN_CONTACT_WIDTH * self.cutoff)
        index = np.searchsorted(self.elements, graph.numbers).clip(max=len(self.elements) - 1)
        away = np.abs(nearest(graph, self.elements) - ((low + high) / 2)[index]) / half[index]
        return np.asarray(away.max(axis=1))

    def save(self, file: Path) -> None:
        """Write to a .npz file."""
        arrays: dict[str, Any] = {
            "elements": np.array(self.elements),
            "contacts": self.contacts,
            "cutoff": np.array(self.cutoff),
            "frames": np.array(self.frames),
            "model": np.array(self.model),
            "atoms": np.array([self.atoms[z] for z in self.elements]),
        }
        for z, mixture in self.mixtures.items():
            arrays |= {
                # single precision is plenty, and half as large
                f"projection-{z}": mixture.projection.astype(np.float32),
                f"shift-{z}": mixture.shift,
                f"height-{z}": mixture.height,
                f"edge-{z}": np.array(mixture.edge),
            }
        for z, average in self.averages.items():
            arrays |= {
                f"average-projection-{z}": average.projection.astype(np.float32),
                f"average-shift-{z}": average.shift,
                f"average-between-{z}": average.between,
                f"average-most-{z}": np.array(average.most),
                f"average-edge-{z}": np.array(average.edge),
            }
        np.savez_compressed(file, **arrays)


def load_training_set(file: Path, model: str | None = None) -> TrainingSet:
    """Read what `TrainingSet.save` wrote. Raises ModelError for anything else.

    model: refuse a file that was fitted on the features of another model than the one of this hash; None to take any.
    """
    again = "make it again: beadwork models novelty"
    # no pickle: it could run any code, and bundles are shared
    with reading(file, ModelError, again), np.load(file, allow_pickle=False) as data:
        elements = tuple(int(z) for z in data["elements"])
        mixtures = {
            z: Mixture(
                np.ascontiguousarray(data[f"projection-{z}"], dtype=np.float64),
                np.asarray(data[f"shift-{z}"], dtype=np.float64),
                np.asarray(data[f"height-{z}"], dtype=np.float64),
                float(data[f"edge-{z}"]),
            )
            for z in elements
            if f"edge-{z}" in data
        }
        averages = {
            z: Average(
                np.asarray(data[f"average-projection-{z}"], dtype=np.float64),
                np.asarray(data[f"average-shift-{z}"], dtype=np.float64),
                np.asarray(data[f"average-between-{z}"], dtype=np.float64),
                int(data[f"average-most-{z}"]),
                float(data[f"average-edge-{z}"]),
            )
            for z in elements
            if f"average-edge-{z}" in data
        }
        found = TrainingSet(
            elements,
            mixtures,
            np.asarray(data["contacts"], dtype=np.float64),
            float(data["cutoff"]),
            str(data["frames"]),
            dict(zip(elements, data["atoms"].tolist(), strict=True)),
            str(data["model"]) if "model" in data else "",
            averages,
        )
    # shapes are checked here, because a wrong one would fail at some step of a run, with a message about tensors
    n = len(elements)
    sane = found.contacts.shape == (n, n, 2) and bool(np.isfinite(found.contacts).all()) and 0 < found.cutoff < np.inf
    sane &= list(elements) == sorted(set(elements)) and all(
        m.projection.ndim == 2
        and m.shift.ndim == 2
        and m.projection.shape[1] == m.shift.size
        and m.height.shape == (len(m.shift),)
        and 0 < m.edge < np.inf
        and all(np.isfinite(array).all() for array in (m.projection, m.shift, m.height))
        for m in mixtures.values()
    )
    sane &= all(
        a.projection.shape == (a.shift.size, a.shift.size)
        and a.between.shape == a.shift.shape == (a.shift.size,)
        and a.most > 0
        and 0 < a.edge < np.inf
        and all(np.isfinite(array).all() for array in (a.projection, a.shift, a.between))
        and bool((a.between >= 0).all())
        for a in averages.values()
    )
    if not n or not sane:
        raise ModelError(f"{file} has arrays of wrong shapes or impossible values", again)
    if model is not None and found.model not in ("", model):
        raise ModelError(
            f"{file} says what the model {found.model[:19]}… was trained on, and this one is {model[:19]}…",
            f"copy the whole bundle again, or {again}",
        )
    return found


def nearest(graph: Graph, elements: tuple[int, ...]) -> FloatArray:
    """(A, n) Å: the distance from each atom to the nearest of each of n elements, the cutoff where there is none."""
    # a column more for atoms of other elements
    found = np.full((len(graph.numbers), len(elements) + 1), graph.cutoff)
    kind = np.full(int(max(*elements, graph.numbers.max())) + 1, len(elements))
    kind[list(elements)] = np.arange(len(elements))
    shortest(graph.degree, graph.neighbor, graph.lengths, kind[graph.numbers], found)
    return found[:, :-1]


def read_features(state: Mapping[str, torch.Tensor]) -> list[tuple[IntArray, torch.Tensor | None]]:
    """Where a MACE module's features are in its `node_feats`: of each layer the columns, and a matrix to apply or None.

    The features are the scalars of every layer (e3nn puts them first), and those of a layer that another one follows
    are taken as that one receives them, through its `linear_up`: so compiled kernels have them at hand.
    state: the module's, as mace-torch 0.3 names its parts. Raises ModelError for any other.
    """
    embedding = state.get("node_embedding.linear.output_mask")
    found: list[tuple[IntArray, torch.Tensor | None]] = []
    at = layer = 0
    while embedding is not None and (mask := state.get(f"products.{layer}.linear.output_mask")) is not None:
        n = embedding.numel()
        up = state.get(f"interactions.{layer + 1}.linear_up.weight")
        # e3nn keeps the weights of scalars to scalars first, and scales by the number of inputs
        matrix = None if up is None or up.numel() < n * n else up[: n * n].view(n, n).double() / n**0.5
        found.append((at + np.arange(n), matrix))
        at += mask.numel()
        layer += 1
    if not found:
        raise ModelError("the model's parts are not named as in mace-torch 0.3, so its features cannot be read")
    return found
