"""Fit a bundle's training set, with which `potential.novelty` compares new atoms.

For each element a Gaussian mixture is fitted to the model's features. The number of components is chosen by the
likelihood of atoms in blocks of frames that were left out, and the edge by the distances of atoms whose own block was
left out: neighbours in time are so similar that they would make both look better than they are. So it is for averages
over a frame, of which there are too few for a quantile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from beadwork.errors import LabelError, ModelError
from beadwork.events import NOVELTY_EDGE
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.packages import pip_install
from beadwork.potential.bundle import NOVELTY, Card, amend_card, check, load_card, members_of
from beadwork.potential.features import features
from beadwork.potential.graph import build
from beadwork.potential.novelty import Average, Mixture, TrainingSet, nearest
from beadwork.train.dataset import DATASET, Dataset, KnownFrame
from beadwork.train.duplicates import frames_hash
from beadwork.train.split import APART, blocks

#: numbers of components that are tried, as long as each component has so many atoms per feature
COMPONENTS = (1, 2, 4, 8)
ATOMS_PER_FEATURE = 8
#: more components must raise the mean log-likelihood of a left-out atom by at least this
MIN_LIKELIHOOD_GAIN = 0.1
#: cross-validation: the blocks are divided into so many parts, and each is left out once
FOLDS = 4
#: a mixture is fitted to at most so many atoms of an element: enough for its shape, and done in seconds
MAX_ATOMS = 6_000
#: a mixture is fitted to at least so many atoms of an element; for fewer only the contacts are used
MIN_ATOMS = 10
#: a part is an outlier when its edge is so many times the next largest
OUTLIER_EDGE_RATIO = 1.5
#: fraction of the training atoms beyond the edge
FRACTION_BEYOND_EDGE = 1e-4
#: an element has averages where it is in so many frames, and these have so many atoms more than one each
MIN_FRAMES = 10
#: the edge of averages lies so many standard deviations above the mean distance of frames left out: at five, a relaxed
#: start structure of liquid water is beyond it
DEVIATIONS = 8.0
#: added to the variances of a component's whitened features, so that none collapses onto a few atoms
VARIANCE_FLOOR = 1e-2


@dataclass(frozen=True, slots=True)
class Fitted:
    """A training set, and for the card its cross-validation on atoms whose block was left out.

    components: by atomic number. new: by atomic number, the fraction of those atoms that would be called new; NaN where
    all atoms of an element are in one block. frames_new: the fraction of frames with such an atom.
    """

    training_set: TrainingSet
    components: dict[int, int]
    new: dict[int, float]
    frames_new: float


def fit(frames: Sequence[Frame], block: Sequence[int], vectors: FloatArray, cutoff: float, seed: int = 0) -> Fitted:
    """Fit the training set of one model.

    block: a number for each frame; correlated frames (of one interval of one simulation) have the same.
    vectors: (A, F), the model's features of all atoms, frame by frame. cutoff: Å, the model's. Raises ModelError for
    frames of one block, and where no element has MIN_ATOMS atoms.
    """
    # an edge from atoms of one block would be that of neighbours in time, which are alike
    if len(set(block)) < 2:
        raise ModelError(
            f"{len(frames)} frames of one block are not enough for novelty",
            "give frames of at least two simulations, or of two separate intervals of one",
        )
    numbers = np.concatenate([frame.numbers for frame in frames])
    owner = np.repeat(np.arange(len(frames)), [len(frame.numbers) for frame in frames])
    blocks_of_atoms = np.asarray(block)[owner]
    elements = tuple(int(z) for z in np.unique(numbers))
    mixtures: dict[int, Mixture] = {}
    averages: dict[int, Average] = {}
    components: dict[int, int] = {}
    left_out = np.full(len(numbers), np.nan)
    for z in elements:
        mine = np.flatnonzero(numbers == z)
        if len(mine) >= MIN_ATOMS:
            fold = _folds(blocks_of_atoms[mine], seed)  # of this element, which may be in few of the blocks
            mixtures[z], components[z], left_out[mine] = _fit_element(vectors[mine], fold, seed)
            shared = _fit_average(vectors[mine], owner[mine], fold)
            if shared is not None:
                averages[z], of_frames = shared
                left_out[mine] = np.maximum(left_out[mine], of_frames)
    if not mixtures:
        raise ModelError(f"the frames have fewer than {MIN_ATOMS} atoms of each element, too few for novelty")
    contacts = _contacts(frames, elements, cutoff)
    training_set = TrainingSet(
        elements,
        mixtures,
        contacts,
        cutoff,
        frames_hash(frames),
        {z: int((numbers == z).sum()) for z in elements},
        averages=averages,
    )
    # in units of the edge, as a run has it
    new = left_out > NOVELTY_EDGE
    return Fitted(
        training_set,
        components,
        {z: float(new[numbers == z].mean()) if np.isfinite(left_out[numbers == z]).all() else np.nan for z in mixtures},
        float(np.mean([new[owner == k].any() for k in range(len(frames))])),
    )


def read_frames(files: Sequence[Path]) -> tuple[list[Frame], list[int]]:
    """Frames of anything that ASE reads, and their blocks (`split.blocks`): by `simulation` and `step` in their info.

    Raises ModelError for a file that cannot be read.
    """
    import ase.io

    met = []
    for file in files:
        try:
            # ASE would read a path with an @ as a file name and an index
            for atoms in ase.io.iread(file, ":", do_not_split_by_at_sign=True):
                step = atoms.info.get("step")
                known = {"simulation": str(atoms.info["simulation"])} if "simulation" in atoms.info else {}
                met.append(
                    KnownFrame(Frame.from_atoms(atoms), False, **known, step=None if step is None else int(step))
                )
        except Exception as error:  # ASE's readers can raise anything
            raise ModelError(f"{file} cannot be read as structures ({type(error).__name__}: {error})") from error
    return [m.frame for m in met], blocks(met, APART).tolist()


def learned(folder: Path) -> tuple[list[Frame], list[int]]:
    """The frames on which a bundle or a committee of `beadwork train` was trained, and their blocks.

    Raises LabelError where there is no dataset.json of it, in the folder or the one above it.
    """
    above = folder.resolve().parent  # a member's dataset lies in the committee's folder
    dataset = Dataset.read(above if (above / DATASET).exists() and not (folder / DATASET).exists() else folder)
    known = [met for met in dataset.past if not met.held_out]
    card = load_card(members_of([folder])[0])
    if card.about.get("dataset", dataset.hash) != dataset.hash:
        raise LabelError(
            f"{card.path} was trained on {card.about['dataset']}, and the {DATASET} there is {dataset.hash}",
            "name the frames on which it was trained (--frames)",
        )
    plan = card.about.get("plan", {})  # a bundle from another program has none
    return [met.frame for met in known], blocks(known, plan.get("settings", {}).get("apart", APART)).tolist()


def fit_bundle(
    bundle: Path, frames: Sequence[Frame], block: Sequence[int], say: Callable[[str], None] = lambda text: None
) -> Card:
    """Fit a bundle's training set on these frames, and write it into the bundle and its summary into the card.

    Raises ModelError as `fit` and `features` do.
    """
    card = check(bundle)
    vectors, _, _ = features(frames, card)
    fitted = fit(frames, block, vectors, card.cutoff)
    about = summary(fitted, len(frames), len(set(block)))
    say(f"{card.name}: {format_fit(about)}")
    return amend_card(bundle, NOVELTY, replace(fitted.training_set, model=card.hash).save, novelty=about)


def summary(fitted: Fitted, frames: int, blocks: int) -> dict[str, Any]:
    """The entries of a card about a training set."""
    return {
        "frames": frames,
        "frames_hash": fitted.training_set.frames,
        "blocks": blocks,
        "components": {chemical_symbols[z]: count for z, count in fitted.components.items()},
        "atoms": {chemical_symbols[z]: count for z, count in fitted.training_set.atoms.items()},
        "left_out_atoms_called_new": {
            chemical_symbols[z]: round(part, 6) for z, part in fitted.new.items() if np.isfinite(part)
        },
        "left_out_frames_called_new": round(fitted.frames_new, 4),
    }


def format_fit(about: dict[str, Any]) -> str:
    """Format the same as a message."""
    parts = ", ".join(
        f"{about['atoms'][s]} {s} in {k} component{'s' * (k > 1)}" for s, k in about["components"].items()
    )
    return (
        f"novelty fitted on {about['frames']} frames in {about['blocks']} blocks ({parts}); of blocks that were left "
        f"out {100 * about['left_out_frames_called_new']:.1f} % of the frames have an atom above {NOVELTY_EDGE:g}"
    )


def _folds(block: IntArray, seed: int) -> IntArray:
    """(A,): the part of each atom; a block is never divided, and the parts are of similar size."""
    names, index, sizes = np.unique(block, return_inverse=True, return_counts=True)
    fold = np.zeros(len(names), dtype=np.int_)
    filled = np.zeros(min(FOLDS, len(names)))
    order = np.random.default_rng(seed).permutation(len(names))
    for name in order[np.argsort(-sizes[order], kind="stable")]:  # the largest first, into the emptiest
        fold[name] = filled.argmin()
        filled[fold[name]] += sizes[name]
    return np.asarray(fold[index.ravel()])


def _fit_element(vectors: FloatArray, fold: IntArray, seed: int) -> tuple[Mixture, int, FloatArray]:
    """The mixture of one element's atoms, its components, and each atom's novelty when its fold was left out.

    The last is NaN where a fold cannot be left out, as too few atoms would remain.
    """
    folds = [k for k in np.unique(fold) if (fold != k).sum() >= MIN_ATOMS]
    tried = [k for k in COMPONENTS if k == 1 or len(vectors) >= k * ATOMS_PER_FEATURE * vectors.shape[1]]
    best, found = 1, -np.inf
    if len(tried) > 1 and len(folds) > 1:
        test = fold == folds[0]
        for k in tried:
            likelihood = _Fit(vectors[~test], k, seed).likelihood(vectors[test])
            # in ascending order, so that a larger k must be better than every smaller one
            if likelihood > found + MIN_LIKELIHOOD_GAIN:
                best, found = k, likelihood
    left_out = np.full(len(vectors), np.nan)
    for part in folds:
        left_out[fold == part] = _Fit(vectors[fold != part], best, seed).distance(vectors[fold == part])
    whole = _Fit(vectors, best, seed)
    known = [left_out[fold == part] for part in folds] or [whole.distance(vectors)]
    edges = sorted(float(np.quantile(one, 1 - FRACTION_BEYOND_EDGE, method="higher")) for one in known)
    # an outlier part must not set the edge: the final fit contains it, and all other parts would lie far inside
    edge = edges[-2] if len(edges) > 2 and edges[-1] > OUTLIER_EDGE_RATIO * edges[-2] else edges[-1]
    mixture = whole.mixture(max(edge, 1e-6))  # identical atoms have no distances: no division by 0
    return mixture, best, left_out / mixture.edge


def _fit_average(vectors: FloatArray, owner: IntArray, fold: IntArray) -> tuple[Average, FloatArray] | None:
    """The averages of one element's features over frames, and each atom's novelty by them when its fold was left out.

    owner: (A,) the frame of each atom, ascending. None for an element in few frames or with hardly more than one atom
    in each.
    """

    def enough(kept: NDArray[np.bool_]) -> bool:
        frames = len(np.unique(owner[kept]))
        return frames >= MIN_FRAMES and int(kept.sum()) - frames >= MIN_FRAMES

    folds = np.unique(fold)
    if len(folds) < 2 or not all(enough(fold != part) for part in folds):
        return None
    left_out = np.empty(len(vectors))
    for part in folds:
        test = fold == part
        means, counts, of = _means(vectors[test], owner[test])
        left_out[test] = _average(vectors[~test], owner[~test]).distance(means, counts)[of]
    first = np.flatnonzero(np.diff(owner, prepend=-1))  # a frame counts once, however many atoms it has
    edge = float(left_out[first].mean() + DEVIATIONS * left_out[first].std())
    average = replace(_average(vectors, owner), edge=max(edge, 1e-6))
    return average, left_out / average.edge


def _means(vectors: FloatArray, owner: IntArray) -> tuple[FloatArray, IntArray, IntArray]:
    """(S, F) the means over each frame's atoms, (S,) how many these are, (A,) the row of each atom."""
    _, of, counts = np.unique(owner, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(means, of, vectors)
    return means / counts[:, None], counts, of


def _average(vectors: FloatArray, owner: IntArray) -> Average:
    """The covariance within frames, whitened, and in these coordinates what is left of that of the means.

    Variance components of a one-way layout with random effects (Searle, Casella and McCulloch, Variance Components,
    1992), diagonal at once: that of a mean over n atoms is between + 1/n.
    """
    from sklearn.covariance import oas

    means, counts, of = _means(vectors, owner)
    free = (len(vectors) - len(means)) / len(vectors)  # a frame's atoms scatter less about their own mean
    covariance, _ = oas(vectors - means[of], assume_centered=True)
    values, axes = np.linalg.eigh(covariance / free)
    white = axes / np.sqrt(np.maximum(values, values[-1] * 1e-12 + 1e-30))
    centre = vectors.mean(axis=0)
    y = (means - centre) @ white
    between, turn = np.linalg.eigh(y.T @ y / len(y) - np.eye(len(white)) * (1 / counts).mean())
    projection = white @ turn
    return Average(projection, centre @ projection, np.maximum(between, 0.0), int(counts.max()), 1.0)


class _Fit:
    """A mixture of one element's features, which are whitened first, so that one variance floor is right for all."""

    def __init__(self, vectors: FloatArray, components: int, seed: int) -> None:
        try:
            from sklearn.covariance import oas
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.mixture import GaussianMixture
        except ImportError as error:
            raise ModelError(
                "fitting novelty needs scikit-learn, which is not installed", pip_install("scikit-learn")
            ) from error
        if len(vectors) > MAX_ATOMS:
            vectors = vectors[np.random.default_rng(seed).choice(len(vectors), MAX_ATOMS, replace=False)]
        self._mean = vectors.mean(axis=0)
        # shrunk as far as so few atoms demand (Chen et al., IEEE Trans. Signal Process. 58, 5016, 2010)
        covariance, _ = oas(vectors - self._mean, assume_centered=True)
        values, axes = np.linalg.eigh(covariance)
        # features that are constant for an element have no variance, up to rounding
        self._white = axes / np.sqrt(np.maximum(values, values[-1] * 1e-12 + 1e-30))
        mixture = GaussianMixture(components, reg_covar=VARIANCE_FLOOR, random_state=seed, tol=1e-2)
        with warnings.catch_warnings():
            # the edge does not depend on the last digits of the likelihood
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(self._whiten(vectors))
        self._mixture = mixture

    def _whiten(self, vectors: FloatArray) -> FloatArray:
        return np.asarray((vectors - self._mean) @ self._white)

    def likelihood(self, vectors: FloatArray) -> float:
        return float(self._mixture.score(self._whiten(vectors)))

    def distance(self, vectors: FloatArray) -> FloatArray:
        """(A,): d, by the same code that evaluates it in a run."""
        return self.mixture(1.0).distance_on_host(vectors)

    def mixture(self, edge: float) -> Mixture:
        cholesky = self._mixture.precisions_cholesky_  # (K, F, F): x @ c has unit variance
        projection = np.concatenate([self._white @ c for c in cholesky], axis=1)
        centres = self._mixture.means_ + self._mean @ self._white
        shift = np.stack([centre @ c for centre, c in zip(centres, cholesky, strict=True)])
        height = np.log(self._mixture.weights_) + np.log(np.diagonal(cholesky, axis1=1, axis2=2)).sum(axis=1)
        return Mixture(projection, shift, height - height.max(), edge)


def _contacts(frames: Sequence[Frame], elements: tuple[int, ...], cutoff: float) -> FloatArray:
    """(n, n, 2) Å: the smallest and the largest distance from an atom of one element to the nearest of another."""
    found = np.empty((len(elements), len(elements), 2))
    found[..., 0], found[..., 1] = np.inf, -np.inf
    for frame in frames:  # one by one: a graph of a whole training set would not fit into memory
        near = nearest(build([frame], cutoff), elements)
        for k, z in enumerate(elements):
            mine = near[frame.numbers == z]
            if len(mine):
                found[k, :, 0] = np.minimum(found[k, :, 0], mine.min(axis=0))
                found[k, :, 1] = np.maximum(found[k, :, 1], mine.max(axis=0))
    return found
