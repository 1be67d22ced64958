"""A number in as many digits as its error bar leaves it."""

from __future__ import annotations

import math

#: a bar smaller than this part of the value is the rounding of a sum, and none
ROUNDING = 1e-9


def with_bar(value: float, bar: float | None, between: str = " ± ") -> str:
    """'48.23 ± 0.92': as many digits as leave the bar two. Without a bar (None, NaN, or mere rounding) three digits."""
    if bar is None or not math.isfinite(bar) or bar <= ROUNDING * abs(value):
        return f"{value:.3g}"
    digits = max(0, 1 - math.floor(math.log10(float(f"{bar:.1e}"))))
    return f"{value:.{digits}f}{between}{bar:.{digits}f}"
