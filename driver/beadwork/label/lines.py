"""Lines of users' text files, with frames or with labels: one rule for where they end, and what an atom is called."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from ase.data import atomic_numbers, chemical_symbols

from beadwork.errors import ConfigError
from beadwork.ipi.outputs import ISOTOPES

#: the columns of an extended XYZ, in the line before a frame's atoms
PROPERTIES = re.compile(r"\bProperties=\"?([^\s\"]+)")
#: the line that LAMMPS's dump xyz writes above the atoms, which have types unless elements were set
_TYPES = re.compile(r"\s*Atoms(\. Timestep|\s*$)")


def decoded(raw: bytes, errors: str = "strict") -> str:
    """The text of a file in UTF-8, without the byte order mark that some editors put before it."""
    return raw.decode("utf-8-sig", errors)


def lines_of(text: str) -> list[str]:
    """The lines of a file, each with its newline; nothing else ends one, as it ends none for ASE and i-PI.

    To `str.splitlines` a form feed and some signs of Unicode, in a comment, are ends of lines too.
    """
    return io.StringIO(text).readlines()


def last_row_is_complete(rows: Sequence[str]) -> bool:
    """Whether the last row is complete: it ends with a newline, or with as many digits as all other rows.

    rows: of one table, such as a frame's atoms, each with the newline that it has.
    """
    if not rows or rows[-1].endswith("\n"):
        return True
    words = [row.split() for row in rows]
    # programs write a column with a fixed number of digits; a number that was cut has fewer
    digits = {len(row[-1].partition(".")[2]) for row in words if len(row) == len(words[-1])}
    return len(rows) > 1 and digits != {0} and len(digits) == 1 and all(len(row) == len(words[0]) for row in words)


def with_elements(block: list[str], where: str) -> tuple[list[str], bool]:
    """The lines of one frame of an xyz with symbols of elements where it has isotopes, numbers, or digits behind them.

    Also whether there are isotopes. Raises ConfigError for a frame without positions, and for what is no element or may
    be another.
    """
    names = _columns(block[1], where)
    if names and "species" not in names:  # the file has atomic numbers
        return block, False
    return _elements(block, names.index("species") if names else 0, where)


def _columns(title: str, where: str) -> list[str]:
    """Name of each column of an extended XYZ; of a plain one none. Raises ConfigError where there are no positions.

    i-PI's extended XYZ of forces, for instance, has positions too, and they are all 0.
    """
    said = PROPERTIES.search(title)
    if said is None:
        return []
    parts = said[1].split(":")
    names = [name for name, width in zip(parts[::3], parts[2::3], strict=False) for _ in range(int(width))]
    others = [name for name in dict.fromkeys(names) if name not in ("species", "pos", "Z")]
    if "pos" not in names or ("ipi_comment=" in title and "positions{" not in title):
        raise ConfigError(f"{where} has no positions, but {', '.join(others) or 'species alone'}")
    return names


def _elements(block: Sequence[str], column: int, where: str) -> tuple[list[str], bool]:
    lines, isotopes = list(block), False
    types = _TYPES.match(block[1])
    for row in range(2, 2 + int(block[0])):
        words = lines[row].split()
        name = words[column]
        if types and name.isdigit():
            raise ConfigError(
                f"{where} has types instead of elements, as LAMMPS's dump xyz writes them: let LAMMPS write elements "
                "(dump_modify ID element O H)"
            )
        symbol, isotope = element(name, where)
        isotopes |= isotope
        if symbol != name:
            words[column] = symbol
            lines[row] = " ".join(words) + "\n"
    return lines, isotopes


def element(name: str, where: str) -> tuple[str, bool]:
    """Symbol of the element of an atom's name, and whether that is of an isotope.

    Raises ConfigError for what is no element, or may be another.
    """
    plain = re.sub(r"(?<=[A-Za-z])\d+$", "", name)  # O1, H2: sites of one element
    symbol = plain.capitalize()
    if re.fullmatch("[0-9]{1,3}", plain) and 0 < int(plain) < len(chemical_symbols):
        return chemical_symbols[int(plain)], False
    if symbol in ISOTOPES:
        return chemical_symbols[ISOTOPES[symbol]], True
    if symbol not in atomic_numbers:
        guess = f" (perhaps {symbol[0]})" if symbol[0] in atomic_numbers else ""
        raise ConfigError(
            f"{where} has an atom that is called {name!r}, which is no element: write the element's symbol{guess}"
        )
    unlike(name, plain, where)
    return symbol, False


def unlike(name: str, letters: str, where: str) -> None:
    """Refuse a name whose first letter is an element and whose first two are another, unless written as a symbol.

    CA is calcium to some programs, and to others the α carbon. Raises ConfigError.
    """
    one, two = letters[:1].upper(), letters[:2].capitalize()
    if len(two) == 2 and not letters.startswith(two) and one in atomic_numbers and two in atomic_numbers:
        raise ConfigError(
            f"{where} has an atom that is called {name!r}, which may be {one} or {two}: write the element's symbol"
        )
