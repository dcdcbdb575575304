"""Ids and labels of strangers as a page shows them: without control characters, cut, and each listed once."""

from ahernet.data.printable import printable

MOST_CHARACTERS = 100


def shown(name: str, at_most: int = MOST_CHARACTERS) -> str:
    """Return `name` for one line of a page; signs that turn the direction of writing are escaped, too."""
    plain = printable(name[: at_most + 1])
    return plain if len(plain) <= at_most else plain[: at_most - 1] + "…"


class Names:
    """Class names by the number that stands for them on the page."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Return the number of a class, a new one if it has none."""
        return self._numbers.setdefault(name, len(self._numbers))

    def listed(self) -> list[str]:
        """Return what is shown for each number."""
        return [shown(name) for name in self._numbers]
