"""Numbers as a page embeds them: few digits, and nothing that JSON has no sign for."""

import math
from collections.abc import Iterable

DIGITS = 6  # more than a page shows


def rounded(value: float, digits: int = DIGITS) -> float | None:
    """Return `value` with so many significant digits, None where it is undefined or infinite."""
    number = float(f"{value:.{digits}g}")
    return number if math.isfinite(number) else None


def all_rounded(values: Iterable[float]) -> list[float | None]:
    """Return `rounded` of each."""
    return [rounded(value) for value in values]
