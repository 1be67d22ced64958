"""Numbers with error bars, as a person reads them."""

from __future__ import annotations

import math

import pytest

from beadwork.digits import with_bar


@pytest.mark.parametrize(
    ("value", "bar", "text"),
    [
        (48.2349, 0.9183, "48.23 ± 0.92"),
        (91.4, 12.0, "91 ± 12"),
        (0.0012, 0.00005, "0.001200 ± 0.000050"),
        (351.2, 9.96, "351 ± 10"),
        (0.997, 0.0996, "1.00 ± 0.10"),
        (12345.6, 789.0, "12346 ± 789"),
        (3.14159, math.nan, "3.14"),
        (3.14159, None, "3.14"),
        (3.14159, 1e-16, "3.14"),
        (3.14159, 0.0, "3.14"),
        (0.0, 0.0, "0"),
    ],
)
def test_digits_are_those_that_the_bar_leaves(value: float, bar: float | None, text: str) -> None:
    """Two digits of the bar and the value to the same place; a bar that is none, or rounding, is not shown as one."""
    assert with_bar(value, bar) == text
