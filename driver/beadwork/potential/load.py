"""Load bundles into a potential: check that their cards go together, and choose engine, alpha and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beadwork.config import ModelSettings
from beadwork.errors import ModelError
from beadwork.potential.additions import check_expected, expected, format_additions, open_additions
from beadwork.potential.auto_engine import AutoEngine, open_engine
from beadwork.potential.bundle import COMMITTEE, Card, check, load_card, load_committee, members_of, unnamed_baseline
from beadwork.potential.eager import EagerEngine
from beadwork.potential.potential import Potential, _names
from beadwork.potential.response import ResponseEngine, Role
from beadwork.potential.torchscript import ModuleEngine


def load(
    baseline: str | Path | None = None,
    delta: Sequence[str | Path] = (),
    engine: str = "auto",
    dtype: str = "float64",
    device: str = "cpu",
    weights: Sequence[float] | None = None,
    alpha: float | None = None,
    baseline_uncertainty: float | None = None,
    energy_alpha: float | None = None,
    baseline_uncertainty_atom: float | None = None,
    charge: int | None = None,
    spin: int | None = None,
    also: Mapping[str, str | Path] | None = None,
    add: Mapping[str, str] | None = None,
    born: bool = True,
) -> Potential:
    """Load a baseline bundle and Δ bundles as one potential.

    delta: bundles, or one committee's folder, or one pointer to such a folder (`members_of`). weights, alpha and
    energy_alpha, where not given, come from the committee.toml beside the Δ bundles, if it is about exactly these; else
    they are equal and 1. charge (e) and spin (unpaired electrons) are those of the whole system, for models that want
    them. also: for 'dipole' or 'polarizability' a bundle, a committee's folder or a pointer to one, whose answers stand
    in `Evaluation.response` (`potential.response`). add: what is added to the baseline by formula, parameters by kind
    (`potential.additions`). born: Born charges with the dipoles. An alpha that is given is that of energies too,
    unless they have their own. Raises ModelError for bundles that are damaged or do not go together.
    """
    # cards first: what does not go together is refused before any model is loaded, which takes seconds each
    paths = members_of(delta)
    members = [load_card(p) for p in paths]
    cards = ([load_card(baseline)] if baseline is not None else []) + members
    _check_together(cards, members)
    add = add or {}
    if baseline is not None:
        check_expected(cards, add)
    scales, notes = _scales(paths, weights, alpha, energy_alpha)
    notes += _doubts(cards, members)
    opened = [open_engine(card.path, engine, dtype, device) for card in cards]
    additions = open_additions(add, sorted({z for card in cards for z in card.elements}))
    if additions and (unsaid := [card.name for card in cards if expected(card) is None]):
        named = " and ".join(one.name for one in additions)
        notes.append(f"{named} is added to the baseline: what {', '.join(unsaid)} learned must be without it")
    if baseline is None and (wanted := {format_additions(told) for card in members if (told := expected(card))}):
        notes.append(f"the Δ models learned the difference to a baseline with {'; '.join(sorted(wanted))}")
    # what has the weights of another, and no other engine than eager, is evaluated with it
    eager = {
        card.hash: engine for card, engine in zip(cards, opened, strict=True) if not card.native and _eager(engine)
    }
    roles = [_role(name, named, dtype, device, born, eager) for name, named in sorted((also or {}).items())]
    all_engines = [*opened, *(engine for role in roles for engine in role.engines)]
    if loose := [card.name for card, engine in zip(cards, opened, strict=True) if not _held_together(card, engine)]:
        notes.append(
            f"the bundle of {', '.join(loose)} is an older one: nothing in it says that all its files are of one model "
            "(import it again, and make its novelty again where it has that)"
        )
    if (charge is not None or spin is not None) and not any(
        getattr(engine, "wants", ()) for engine in (*all_engines, *additions)
    ):
        notes.append("charge and spin are told to no model, because none wants them")
    # cards are in this order: the baseline first
    base = opened.pop(0) if baseline is not None else None
    potential = Potential(
        base,
        opened,
        scales.weights,
        1.0 if scales.alpha is None else scales.alpha,
        baseline_uncertainty,
        usual=scales.usual,
        energy_alpha=scales.energy_alpha,
        atom_uncertainty=baseline_uncertainty_atom,
        cards=cards,
        notes=notes,
        charge=charge,
        spin=spin,
        also=roles,
        additions=additions,
    )
    # what Δ gives a lone atom is the weighted mean of the members', like the rest of Δ
    # a trunk is the mean of its heads already
    shares = [1.0] if potential.trunk else potential.weights.tolist()
    for weight, member in zip(shares, opened, strict=True):
        for z, energy in member.reference.items():
            potential.reference[z] = potential.reference.get(z, 0.0) + weight * energy
    return potential


class _Scales(NamedTuple):
    """What the members' numbers are multiplied by, where that is known; usual: eV/Å, as `Potential` has it."""

    weights: Sequence[float] | None
    alpha: float | None
    energy_alpha: float | None
    usual: float | None


def _scales(
    paths: Sequence[Path], weights: Sequence[float] | None, alpha: float | None, energy_alpha: float | None
) -> tuple[_Scales, list[str]]:
    """What a user gives, else what the committee.toml beside these bundles says; and what is to be said of it."""
    committee = load_committee(paths) if paths else None
    if committee is None:
        notes = []
        if any((path.resolve().parent / COMMITTEE).exists() for path in paths):
            notes.append(
                f"the {COMMITTEE} beside the Δ models lists other members than these, so its alpha and weights are not "
                "used: the spread is not calibrated"
            )
        return _Scales(weights, alpha, energy_alpha, None), notes
    if energy_alpha is None:
        energy_alpha = committee.energy_alpha if alpha is None else alpha
    if alpha is None:
        alpha = committee.alpha
    if weights is None:
        weights = [committee.weights[path.resolve().name] for path in paths]
    # the card's quantile was taken after the card's alpha; a user's alpha scales every spread, and so this one
    usual = None if committee.usual is None else committee.usual * alpha / committee.alpha
    said = (
        f"committee.toml: alpha {committee.alpha:g} of forces and {committee.energy_alpha:g} of energies, weights "
        f"{dict(committee.weights)}"
    )
    return _Scales(weights, alpha, energy_alpha, usual), [said]


def _doubts(cards: Sequence[Card], members: Sequence[Card]) -> list[str]:
    """What the cards leave open."""
    notes = []
    if unknown := [card.name for card in cards if card.novelty is None]:
        notes.append(
            f"the bundle of {', '.join(unknown)} does not say what it was trained on, so there is no novelty for it "
            "(make it with: beadwork models novelty)"
        )
    if len(cards) > len(members) and (unnamed := unnamed_baseline(members)):
        notes.append(
            f"the card of {', '.join(card.name for card in unnamed)} does not say of which baseline it is the "
            "difference: nothing but its name tells that it belongs to this one (`beadwork doctor` has the line for it)"
        )
    return notes


def _held_together(card: Card, engine: ModuleEngine | AutoEngine) -> bool:
    known = engine.training_set
    return card.held and (known is None or bool(known.model))


def load_for(config: ModelSettings, born: bool = True) -> Potential:
    """Load the models that a run names. born: as `load` has it. Raises ModelError."""
    return load(
        config.baseline,
        config.delta,
        config.engine,
        config.dtype,
        config.device,
        config.weights,
        config.alpha,
        config.baseline_uncertainty,
        config.energy_alpha,
        config.baseline_uncertainty_atom,
        config.charge,
        config.spin,
        config.also,
        config.add,
        born,
    )


def _eager(engine: ModuleEngine | AutoEngine) -> bool:
    return isinstance(engine.exact if isinstance(engine, AutoEngine) else engine, EagerEngine)


def _role(
    name: str,
    named: str | Path,
    dtype: str,
    device: str,
    born: bool,
    energies: Mapping[str, ModuleEngine | AutoEngine],
) -> Role:
    """The models of one role, with the weights of their committee.toml. energies: engines of others, by hash."""
    paths = members_of([named])
    committee = load_committee(paths)
    weights = (
        np.ones(len(paths)) if committee is None else np.array([committee.weights[p.resolve().name] for p in paths])
    )
    cards = [check(path) for path in paths]
    engines = tuple(ResponseEngine(card, name, dtype, device, born, energies.get(card.hash)) for card in cards)
    for engine in engines[1:]:
        if (engine.elements, engine.answers) != (engines[0].elements, engines[0].answers):
            raise ModelError(
                f"{engine.name} and {engines[0].name} differ in the elements that they know or in what they answer",
                "the members of a committee must be trained for the same",
            )
    return Role(name, engines, weights / weights.sum())


def _check_together(cards: Sequence[Card], members: Sequence[Card]) -> None:
    # members are averaged, so all must know the same elements; the baseline may know more than Δ, or less
    for card in members[1:]:
        first = members[0]
        if card.elements != first.elements:
            raise ModelError(
                f"{card.path} knows {_names(card.elements)} but {first.path} knows {_names(first.elements)}",
                "the members of a committee must be trained for the same elements",
            )
        # rounding of one precision would count as disagreement with those of the other
        if card.dtype != first.dtype:
            raise ModelError(
                f"{card.path} was trained in {card.dtype} but {first.path} in {first.dtype}",
                "the members of a committee must be trained in one precision",
            )
    if len(cards) > len(members):
        check_baseline(cards[0], members)
    if len(cards) > len(members) and members and not set(cards[0].elements) & set(members[0].elements):
        raise ModelError(
            f"the baseline {cards[0].path} knows {_names(cards[0].elements)} and {members[0].path} knows "
            f"{_names(members[0].elements)}: no element in common, so they cannot be summed"
        )
    # the same model twice would agree with itself and halve the spread
    paths = [card.path.resolve() for card in members]
    if len(set(paths)) < len(paths):
        raise ModelError("a Δ model is given twice", "each member of the committee must be another one")


def check_baseline(baseline: Card, members: Sequence[Card]) -> None:
    """Raise ModelError for a Δ whose card says that it is the difference to another baseline."""
    # by hash: two baselines can have one name, and the same model imported anew has another hash
    for card in members:
        made_for = card.about.get("baseline")
        if isinstance(made_for, str) and made_for.startswith("sha256:") and made_for != baseline.hash:
            raise ModelError(
                f"{card.path} is the difference to the baseline {made_for[:19]}…, and {baseline.path} is "
                f"{baseline.hash[:19]}…: their sum means nothing",
                "give the baseline that it was trained against, or "
                "train it again (where it is the same model imported anew, write its hash into the Δ's card)",
            )
