"""What is added to a baseline by formula: dispersion and the repulsion of close nuclei; and what a card says of it.

A model that was trained on labels less such an energy is right only together with it. The entry `add` of its card names
it, as run.toml does: add = {d3bj = "revPBE"}.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from beadwork.config import ADDITIONS
from beadwork.errors import ConfigError, ModelError
from beadwork.potential.bundle import Card, prefixed
from beadwork.potential.dispersion import Dispersion
from beadwork.potential.engine import Addition
from beadwork.potential.zbl import Zbl

#: the entry of a card
ADD = "add"
ZBL = "zbl"


def open_additions(add: Mapping[str, str], elements: Sequence[int]) -> list[Addition]:
    """Each as an engine. elements: atomic numbers that it may meet.

    Raises ConfigError for an unknown kind or a value that is none, ModelError as `Dispersion` does.
    """
    check_kinds(add)
    return [
        Zbl(value, elements, hash_of(kind, value)) if kind == ZBL else Dispersion(kind, value, hash_of(kind, value))
        for kind, value in add.items()
    ]


def check_kinds(add: Mapping[str, str]) -> None:
    """Raise ConfigError for a kind that there is not."""
    for kind in add:
        if kind not in ADDITIONS:
            raise ConfigError(f"add names {kind!r}", f"it wants one of {', '.join(ADDITIONS)}, as d3bj=PBE")


def hash_of(kind: str, value: str) -> str:
    """What stands for it in the hash of all models."""
    return prefixed(hashlib.sha256(f"{kind}={value.lower()}".encode()).hexdigest())


def format_additions(add: Mapping[str, str]) -> str:
    """As the command line has it: `d3bj=revPBE`; `nothing` where there is none."""
    return " ".join(f"{kind}={value}" for kind, value in sorted(add.items())) or "nothing"


def expected(card: Card) -> dict[str, str] | None:
    """What a card says that is to be added, None where it says nothing of it. Raises ModelError for what is no such."""
    said = card.about.get(ADD)
    if said is None:
        return None
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ModelError(f"the card of {card.path} has {ADD} = {said!r}", 'it must be a table, as {d3bj = "revPBE"}')
    return dict(said)


def check_expected(cards: Sequence[Card], add: Mapping[str, str]) -> None:
    """Raise ModelError for a model that learned labels less something else than what is added here."""
    for card in cards:
        wanted = expected(card)
        if wanted is not None and same(wanted) != same(add):
            raise ModelError(
                f"{card.path} learned what is left of its labels without {format_additions(wanted)}, and "
                f"{format_additions(add)} is added here",
                f"give --add {format_additions(wanted)}",
            )


def same(add: Mapping[str, str]) -> dict[str, str]:
    """In a form that is equal where the energies are."""
    return {kind: value.lower() for kind, value in add.items()}
