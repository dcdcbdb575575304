"""Class names that are different but easily taken for each other."""

import unicodedata
from collections.abc import Iterable

from ahernet.event_log import warn


def look_alikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ in upper and lower case, in spaces or in how signs are composed alone.

    Each name is in a pair with the first that looks like it; both in the order of `names`.
    """
    first: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(names):
        form = " ".join(unicodedata.normalize("NFKC", name).split()).casefold()
        if first.setdefault(form, name) != name:
            pairs.append((first[form], name))
    return pairs


def warn_of_look_alikes(names: Iterable[str], source: str) -> None:
    """Say on standard error that classes of `source` look like one: a typing error makes a class of its own."""
    pairs = look_alikes(names)
    if pairs:
        (one, other), more = pairs[0], f" (and {len(pairs) - 1:,} more)" if len(pairs) > 1 else ""
        warn(f"{source}: classes {one!r} and {other!r} look alike{more}, but are two; write them alike if they are one")
