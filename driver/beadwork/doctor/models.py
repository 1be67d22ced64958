"""Check the models: do they fit each other, are forces derivatives of energies, do engines agree, and do they know the
start structure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from ase.data import chemical_symbols

from beadwork.config import LimitSettings, ModelSettings, SelectionSettings
from beadwork.doctor.finding import AMBER, GREEN, RED, Colour, Finding
from beadwork.doctor.structure import name
from beadwork.errors import ModelError, ThresholdError
from beadwork.events import NOVELTY_EDGE, WHOSE
from beadwork.frame import Frame
from beadwork.harvest.row import novelty_of
from beadwork.harvest.select import force_window
from beadwork.packages import pip_install
from beadwork.potential.auto_engine import TOLERANCE, compare, compare_dense
from beadwork.potential.bundle import LEARN_MORE, Card, check, load_committee, unnamed_baseline, worse_than_baseline
from beadwork.potential.eager import open_exact
from beadwork.potential.evaluation import Evaluation
from beadwork.potential.graph import build
from beadwork.potential.limits import NOVELTY_REMEDIES, format_novelty
from beadwork.potential.native import NativeEngine, available
from beadwork.potential.potential import Potential

#: Å, and relative strain, for differences of the energy. With four points the error of the formula, h^4/30 times the
#: fifth derivative, is 1e-8 eV/Å for the stiffest bond there is (O-H), and that of rounding 1e4 eV is the same; the
#: splines of the native engine make it 3e-7
DISPLACEMENT, STRAIN = 2e-3, 5e-4
#: eV/Å, and eV/atom: allowed differences of forces and virial from those. Hundreds of times the errors above, and a
#: hundredth of a good model's error
FORCE_LIMIT, VIRIAL_LIMIT = 1e-4, 1e-4
#: atoms whose force is compared component by component
CHECKED_ATOMS = 3
#: cosine between the forces of Δ and of the baseline above which Δ is a whole model and no difference
SAME_DIRECTION_COSINE = 0.9
#: eV/atom; members whose energies are further apart had different reference energies
MAX_OFFSET = 0.1
#: what to do about a start that the models do not know
KNOWN_BY_TRAINING = "relax the start structure, or label frames like it and train"
#: points of the finite difference, in steps, and their weights
_POINTS, _WEIGHTS = (-2, -1, 1, 2), (1 / 12, -8 / 12, 8 / 12, -1 / 12)


def together(cards: Sequence[Card], alpha: float | None, potential: Potential, answer: Evaluation) -> Iterator[Finding]:
    """Whether baseline and Δ fit each other, by their cards and by their results. alpha: as given."""
    if answer.delta is None or answer.baseline is None:
        yield Finding(GREEN, "models", f"{len(cards)} of one kind, so there is nothing to fit together")
        return
    copies = list(_copies(cards))
    yield from copies
    if copies:
        return  # what follows compares models that differ
    atoms = len(answer.forces) / len(answer.energies)
    own, delta = answer.baseline.forces.ravel(), answer.delta.forces.ravel()
    length, change = float(np.linalg.norm(own)), float(np.linalg.norm(delta))
    size, along = change / max(length, 1e-12), float(own @ delta) / max(length * change, 1e-12)
    energy, offset = (float(x.energies.mean()) / atoms for x in (answer.baseline, answer.delta))
    # the difference of two levels is small beside a level, and has no reason to point along it
    if along > SAME_DIRECTION_COSINE and size > 0.5:
        yield _model(
            RED,
            f"the Δ forces are {size:.2g} times the baseline's and point the same way: whole models, no differences",
            "give models that were trained on differences (high level minus baseline)",
        )
        return
    apart = 0.0
    if answer.spread is not None:
        # offsets are constant for one composition: they move no atom, but fill the energy spread
        apart = float(np.max(answer.spread.members.max(axis=0) - answer.spread.members.min(axis=0))) / atoms
    if abs(offset) > abs(energy) / 2:
        yield _model(
            AMBER,
            f"Δ is {offset:.4g} eV/atom where the baseline is {energy:.4g}: their reference energies are no pair",
            "harmless for forces; where energies matter, train Δ on differences of one kind of total energy",
        )
    elif apart > MAX_OFFSET:
        yield _model(
            AMBER,
            f"the members' energies lie {apart:.2g} eV/atom apart: they had different reference energies",
            "train them again with the same, or the energy spread means nothing",
        )
    else:
        yield _model(
            GREEN,
            f"Δ is {offset:.3g} eV/atom and {100 * size:.2g} % of the baseline's forces"
            + ("" if unnamed_baseline(cards[1:]) else ", and made for this baseline"),
        )
    yield from _by_cards(cards, alpha, potential)


def _copies(cards: Sequence[Card]) -> Iterator[Finding]:
    """Members that are another of the models."""
    # by hash, not by path: a copy of a member, or the baseline given as a member, has another folder
    hashes = [card.hash for card in cards]
    for card in cards[1:]:
        if hashes.count(card.hash) > 1:
            other = next(c for c in cards if c.hash == card.hash and c is not card)
            yield _model(
                RED, f"{card.path} and {other.path} are the same model", "give each member once, and no baseline"
            )


def _by_cards(cards: Sequence[Card], alpha: float | None, potential: Potential) -> Iterator[Finding]:
    """What the cards do not say: the baseline, whether the committee is better than it, the calibration."""
    if unnamed := unnamed_baseline(cards[1:]):
        yield _model(
            AMBER,
            f"the card of {unnamed[0].path} does not say of which baseline it is the difference: nothing but its name "
            "tells that it belongs to this one",
            f'where it does, write baseline = "{cards[0].hash}" below the name in its card.toml (of {len(unnamed)} '
            f"member{'s' if len(unnamed) > 1 else ''})",
        )
    paths = [card.path for card in cards[1:]]
    # None also for a committee.toml that is about other members than these
    calibrated = load_committee(paths) is not None
    if calibrated and (said := worse_than_baseline(paths[0].resolve().parent)):
        yield _model(AMBER, said, LEARN_MORE)
    if potential.members[1:] and alpha is None and not calibrated:
        yield _model(
            AMBER, "no committee.toml gives alpha, so the spread is not calibrated", "--alpha, or a committee.toml"
        )


def _model(colour: Colour, text: str, remedy: str = "") -> Finding:
    return Finding(colour, "models", text, remedy, ModelError.exit_code)


def _over_threshold(topic: str, said: str, option: str, limits: LimitSettings) -> Finding:
    """The start is beyond a safety threshold: with what the run would do, and the option that moves the threshold."""
    stops = limits.on_mark == "stop"
    then = "the run would end at its first step" if stops else "counted, and the run goes on, as --on-mark says"
    remedy = f"{KNOWN_BY_TRAINING}; {option} moves the threshold"
    code = ThresholdError.exit_code if stops else 0
    return Finding(RED if stops else AMBER, topic, f"{said} ({option}): {then}", remedy, code)


def spread(answer: Evaluation, keep: SelectionSettings, limits: LimitSettings) -> Iterator[Finding]:
    """Where the start lies: beyond the threshold that ends a run, in or above the selection windows, or below them."""
    if answer.spread is None:
        yield Finding(GREEN, "spread", "there are fewer than two Δ models, so the uncertainty is not known")
        return
    worst = int(answer.spread.largest.argmax())
    force = float(answer.spread.largest[worst])
    # per atom, as --keep-energy has it: all structures have the same number of atoms
    energy = float(answer.spread.energy.max()) * len(answer.energies) / len(answer.forces)
    where = f"{force:.3g} eV/Å at most at the start (atom {int(answer.spread.atom[worst])})"
    if force > limits.mark_spread:
        said = f"{where}, above the threshold of {limits.mark_spread:g} eV/Å"
        yield _over_threshold("spread", said, "--mark-spread", limits)
        return
    above: list[tuple[str, str, str]] = []
    within, below = above[:], above[:]
    for option, text, unit, value, marks in (
        ("--keep-force", where, "eV/Å", force, force_window(keep.keep_force, limits.mark_spread, answer.spread.usual)),
        ("--keep-energy", f"{energy:.3g} eV/atom at most at the start", "eV/atom", energy, keep.keep_energy),
    ):
        if marks:
            window = f"the selection window of {option}, {' to '.join(f'{mark:g}' for mark in marks)} {unit}"
            # one value is a window without an upper end
            low, high = (*marks, math.inf)[:2]
            (above if value >= high else within if value >= low else below).append((text, window, option))
    if above:
        text, window, option = above[0]
        kept = "so the queue keeps no such frame" if keep.queue else "though without --queue the run does not look"
        yield Finding(
            AMBER,
            "spread",
            f"{text}, above {window}: the models do not know this structure, {kept}",
            f"{KNOWN_BY_TRAINING}; {option} moves the window",
        )
    elif within:
        text, window, option = within[0]
        kept = "frames will be kept from the first step on" if keep.queue else "without --queue no frame is kept"
        usual = f"label those first; or raise the low end of {option}, if such a spread is usual for these models"
        yield Finding(
            AMBER,
            "spread",
            f"{text}, in {window}: {kept}",
            usual if keep.queue else "--queue keeps such frames for labels",
        )
    else:
        yield Finding(GREEN, "spread", ", and ".join(f"{text}, below {window}" for text, window, _ in below) or where)


def novelty(
    answer: Evaluation,
    potential: Potential,
    frames: Sequence[Frame],
    keep: SelectionSettings,
    limits: LimitSettings,
) -> Iterator[Finding]:
    """Whether the models were trained on atoms like those of the start; frames: the evaluated ones."""
    if lacking := [card for card in potential.cards if card.novelty is None]:
        yield Finding(
            AMBER,
            "novelty",
            f"what {_and([card.name for card in lacking])} was trained on is not known, so its novelty is not known "
            "either",
            f"beadwork models novelty {' '.join(str(card.path) for card in lacking)} --frames FILE, the frames that it "
            "was trained on",
        )
    if answer.novelty is None:
        return
    found, numbers = answer.novelty, np.concatenate([frame.numbers for frame in frames])
    atom = int(found.atoms.argmax())
    # ptr has the first atom of each structure
    worst, frame = float(found.atoms[atom]), frames[int(np.searchsorted(answer.ptr, atom, side="right")) - 1]
    text = f"{format_novelty(answer, frame, atom)}, the largest at the start, where 1 is the edge of training"
    parts = [part for part, of in found.of.items() if of[atom] > NOVELTY_EDGE]
    if parts:
        everyone = len(parts) == bool(potential.baseline) + bool(potential.members)
        whom = "no model here has" if everyone else f"{_and([WHOSE[part] for part in parts])} has not"
        many = Counter(chemical_symbols[z] for z in numbers[found.atoms > NOVELTY_EDGE])
        told = _and([f"{n} {symbol}" for symbol, n in many.items()])
        where = f" in {len(frames)} structures" if len(frames) > 1 else ""
        text += f": {whom} seen such an atom (new atoms: {told}{where})"
    if worst > limits.mark_novelty:
        said = f"{text}; it is above the threshold of {limits.mark_novelty:g}"
        yield _over_threshold("novelty", said, "--mark-novelty", limits)
        return
    # the same function decides in a run, so the doctor cannot say otherwise
    asks = novelty_of(found.of, keep.keep_novelty_of)
    keeps = asks is not None and float(asks.max()) >= keep.keep_novelty
    if parts or keeps:
        kept = "frames will be kept from the first step on" if keep.queue else "without --queue no frame is kept"
        if not keeps:
            kept = f"--keep-novelty {keep.keep_novelty:g} of {keep.keep_novelty_of} keeps no such frame"
        wanted = (NOVELTY_REMEDIES[part] for part, of in found.of.items() if (of > NOVELTY_EDGE).any())
        remedy = "; ".join(wanted) or f"--keep-novelty {NOVELTY_EDGE:g} keeps what is new and no more"
        yield Finding(AMBER, "novelty", f"{text}; {kept}", remedy)
    else:
        yield Finding(GREEN, "novelty", text)


def _and(names: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def derivatives(potential: Potential, frame: Frame, together: int = 16) -> Iterator[Finding]:
    """Compare forces and virial with finite differences of the energy: single atoms, all atoms at once, six strains.

    dE/dx = (8 (E(h) - E(-h)) - (E(2h) - E(-2h))) / 12h. together: structures in one evaluation.
    """
    answer = potential.evaluate([frame])
    forces, virial = answer.forces, answer.virials[0]
    # the largest force of each element, then the largest of all
    order = np.argsort(-np.linalg.norm(forces, axis=1))
    first = [int(order[frame.numbers[order] == z][0]) for z in np.unique(frame.numbers)]
    chosen = list(dict.fromkeys([*first, *map(int, order)]))[:CHECKED_ATOMS]
    atoms, n = [(a, i) for a in chosen for i in range(3)], len(frame.numbers)
    moves = []
    for a, i in atoms:
        move = np.zeros((n, 3))
        move[a, i] = 1.0
        moves.append(move)
    # one random direction of all atoms tests every force at once; the single atoms tell which element is wrong
    every = np.random.default_rng(0).normal(size=(n, 3))
    moves.append(every / np.abs(every).max())
    pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    frames = [replace(frame, positions=frame.positions + s * DISPLACEMENT * move) for move in moves for s in _POINTS]
    for i, j in pairs:
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5  # symmetric: a rotation changes no energy
        strain[j, i] += 0.5
        for s in _POINTS:
            stretch = np.eye(3) + s * STRAIN * strain
            frames.append(replace(frame, positions=frame.positions @ stretch, cell=frame.cell @ stretch))
    energies = np.concatenate(
        [potential.evaluate(frames[k : k + together]).energies for k in range(0, len(frames), together)]
    )
    slopes = energies.reshape(-1, 4) @ np.array(_WEIGHTS)
    along = np.array([(forces * move).sum() / np.linalg.norm(move) for move in moves])
    # the force is minus the slope; moves of all atoms are longer than 1, so both sides are per unit length
    found = -slopes[: len(moves)] / DISPLACEMENT / [np.linalg.norm(move) for move in moves]
    worst = int(np.argmax(np.abs(found - along)))
    error = float(np.abs(found - along)[worst])
    what = "all atoms together" if worst == len(atoms) else f"{name(frame, atoms[worst][0])}, {'xyz'[atoms[worst][1]]}"
    yield _held(
        "forces",
        error,
        FORCE_LIMIT,
        f"eV/Å from the energy's differences ({what}: {along[worst]:.5g} against "
        f"{found[worst]:.5g} eV/Å; float64, steps of {DISPLACEMENT:g} Å)",
    )
    told = np.array([virial[i, j] for i, j in pairs])
    # the virial is minus the derivative by strain, as it is minus stress times volume
    strained = -slopes[len(moves) :] / STRAIN
    worst = int(np.argmax(np.abs(strained - told)))
    yield _held(
        "virial",
        float(np.abs(strained - told)[worst]) / n,
        VIRIAL_LIMIT,
        f"eV/atom from the energy's differences (component {''.join('xyz'[k] for k in pairs[worst])}: "
        f"{told[worst]:.6g} against {strained[worst]:.6g} eV; strains of {STRAIN:g})",
    )


def _held(topic: str, error: float, limit: float, text: str) -> Finding:
    if error <= limit:
        return Finding(GREEN, topic, f"{error:.1e} {text}")
    return Finding(
        RED,
        topic,
        f"{error:.1e} {text}: energy will not be conserved",
        f"the model or engine is broken (allowed: {limit:g}): import it again, or try another --engine",
        ModelError.exit_code,
    )


def engines(cards: Sequence[Card], frame: Frame, config: ModelSettings) -> Iterator[Finding]:
    """Native against torchscript, model by model, in float64.

    Red where a run would refuse the model; amber where it runs without, or with another engine.
    """
    # only then would the run itself use what is tried here, and end with it
    refused = RED if config.engine == "native" and config.dtype == "float64" else AMBER
    slow = "; torchscript is taken, which is several times slower" if config.engine == "auto" else ""
    if not available():
        yield Finding(AMBER, "engines", f"symmetrix-xl is not installed{slow}", pip_install("symmetrix-xl"))
        return
    # one graph for all models; those of a shorter cutoff leave the longer pairs out
    graph = build([frame], max(card.cutoff for card in cards))
    energies, forces = [0.0], [0.0]
    told: set[str] = set()
    for card in cards:
        if not card.native:
            why = card.about.get("native", "it was not extracted")
            remedy = str(card.about.get("native_remedy", "nothing to mend: torchscript or eager serves every model"))
            yield Finding(AMBER, "engines", f"{card.path} has no native model ({why}){slow}", remedy)
            continue
        try:
            native = NativeEngine(check(card.path), "float64", config.device)
        except ModelError as error:
            if str(error) not in told:  # a fault of the machine is the same for every model
                told.add(str(error))
                text = f"native cannot be run: {error.what}{slow}"
                yield Finding(refused, "engines", text, error.remedy, error.exit_code)
            continue
        exact = open_exact(check(card.path), "float64", config.device)
        found = compare(native, exact, graph, "float64")
        # a start structure may hold few pairs of some elements: the dense trial has all of them
        dense = compare_dense(native, exact, np.unique(frame.numbers).tolist(), "float64")
        if found.agreed and dense.agreed:
            energies.append(found.energy)
            forces.append(found.force)
            continue
        yield Finding(
            refused,
            "engines",
            f"{card.path}: {dense if found.agreed else found}{slow}",
            "import the model again; --engine torchscript meanwhile",
            ModelError.exit_code,
        )
    if len(forces) > 1:
        yield Finding(
            GREEN,
            "engines",
            f"native agrees with torchscript for {len(forces) - 1} models: {max(energies):.1e} eV/atom and "
            f"{max(forces):.1e} eV/Å at most",
        )


def precision(rough: Evaluation, exact: Evaluation, dtype: str) -> Iterator[Finding]:
    """The errors of float32 (rough) relative to float64 (exact), whichever is used."""
    # per atom, as the tolerance has it
    energy = float(np.abs(rough.energies - exact.energies).max()) * len(rough.energies) / len(rough.forces)
    force = float(np.abs(rough.forces - exact.forces).max())
    text = f"{force:.1e} eV/Å and {energy:.1e} eV/atom at most from float64"
    rounding = energy <= TOLERANCE["float32"][0] and force <= TOLERANCE["float32"][1]
    if dtype == "float64":
        worth = "rounding, and faster: take it" if rounding else "more than rounding: keep float64"
        yield Finding(GREEN, "precision", f"float64; --dtype float32 would be {text}, {worth}")
    elif rounding:
        yield Finding(GREEN, "precision", f"float32, {text}")
    else:
        yield Finding(AMBER, "precision", f"float32, {text}, which is more than rounding", "--dtype float64")
