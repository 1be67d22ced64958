"""Lines of users' text files, with frames or with labels: one rule for the beginning and the end of a file."""

from __future__ import annotations

from collections.abc import Sequence


def decoded(raw: bytes, errors: str = "strict") -> str:
    """The text of a file in UTF-8, without the byte order mark that some editors put before it."""
    return raw.decode("utf-8-sig", errors)


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
