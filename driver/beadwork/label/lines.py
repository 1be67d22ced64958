"""Lines of the text files that a user brings, with frames or with labels: one rule for how they begin and end."""

from __future__ import annotations

from collections.abc import Sequence


def decoded(raw: bytes, errors: str = "strict") -> str:
    """The text of a file in UTF-8, without the byte order mark that some editors put before it."""
    return raw.decode("utf-8-sig", errors)


def ends(rows: Sequence[str]) -> bool:
    """Whether the last row is whole: it ends with a newline, or in as many digits as all other rows do.

    rows: of one table, such as a frame's atoms, each with the newline that it has.
    """
    if not rows or rows[-1].endswith("\n"):
        return True
    words = [row.split() for row in rows]
    digits = {len(row[-1].partition(".")[2]) for row in words if len(row) == len(words[-1])}
    return len(rows) > 1 and digits != {0} and len(digits) == 1 and all(len(row) == len(words[0]) for row in words)
