"""Says what became slower, or faster, between two records of one device.

    python -m bench compare A.json B.json [--threshold 5%]

A row a timing of ours: medians, B of A, and the spread of both (half the distance of the 20 % and 80 % quantiles).
Slower is what takes more by the threshold and by more than the spread. Exit status: 0; 1 if anything of ours is slower
or gave wrong results in B, or was timed in A and failed or is missing in B; 2 if the records cannot be compared. What B
was not asked for (`--only`, `-k`) is not missing.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.records import NOT_BEGUN, NOT_MADE, OWN, OWN_WITH_NUMBA, Name, Recorded, Timing, read

Key = tuple[str, str, str]  # op, case, way


@dataclass(frozen=True)
class Row:
    """One timing in both records."""

    name: Name
    before: Timing
    after: Timing

    @property
    def ratio(self) -> float:
        """B of A: above 1 is slower."""
        return self.after.median / self.before.median

    @property
    def spread(self) -> float:
        """Of the ratio, as a share: that of both together."""
        return self.before.spread + self.after.spread

    def verdict(self, threshold: float) -> str:
        """`slower`, `faster`, or nothing where the difference is small or within the spread."""
        least = max(threshold, self.spread)
        if self.ratio > 1 + least:
            return "slower"
        return "faster" if self.ratio < 1 / (1 + least) else ""


def rows_of(before: Recorded, after: Recorded, peers: bool) -> list[Row]:
    """What both have timed, in the order of the first."""
    return [
        Row(name, timing, after.timings[name])
        for name, timing in before.timings.items()
        if name in after.timings and (peers or is_own(name.way))
    ]


def is_own(way: str) -> bool:
    """Whether a way, or a part of one, is the project's."""
    return way in (OWN, OWN_WITH_NUMBA) or way.startswith("part: ")


def newly_failed(before: Recorded, after: Recorded) -> list[Key]:
    """What ran before and fails now, whole groups of lines included."""
    ran = {(name.op, name.case, name.way) for name in before.timings}
    groups = {name.op for name in before.timings} | {timing.group for timing in before.timings.values()}

    def did_run(key: Key) -> bool:
        return key[0] in groups if key[1] in (NOT_MADE, NOT_BEGUN) else key in ran

    return [key for key in after.failed if key not in before.failed and is_own(key[2]) and did_run(key)]


def asked_of(before: Recorded, after: Recorded) -> list[Name]:
    """Our timings of the first that the second was asked for too."""
    return [
        name
        for name, timing in before.timings.items()
        if is_own(name.way) and (after.asked is None or timing.group in after.asked)
    ]


def missing(before: Recorded, after: Recorded) -> dict[Key, list[str]]:
    """The modes of what should have been timed again and was not, but for what is known to have failed."""
    found: dict[Key, list[str]] = {}
    for name in asked_of(before, after):
        key, whole = (name.op, name.case, name.way), (name.op, name.case, OWN)
        if name not in after.timings and key not in after.failed and whole not in after.failed:
            found.setdefault(key, []).append(name.mode)
    return found


def problems(before: Recorded, after: Recorded) -> list[str]:
    """What is worse than slower, a line each."""
    told = {key: f"ran in A, in B it failed: {after.failed[key]}" for key in newly_failed(before, after)}
    told |= {key: f"timed in A, not in B: {', '.join(modes)}" for key, modes in missing(before, after).items()}
    found = [*told.items(), *((key, f"in B only {share}") for key, share in after.wrong.items())]
    return [f"{op}, {case}, {way}: {text}" for (op, case, way), text in found]


def refusal(before: Recorded, after: Recorded, across: bool) -> str | None:
    """Why two records cannot be compared."""
    if before.kind != after.kind:
        return f"one record is of a {before.kind}, the other of a {after.kind}: nothing in them is comparable"
    if before.device != after.device and not across:
        return (
            f"different devices: {before.device!r} and {after.device!r} (--across-devices compares them all the same)"
        )
    return None


def text_of(rows: list[Row], threshold: float) -> str:
    """The rows as a table."""
    heading = f"{'op':18}{'case':44}{'way':30}{'mode':7}{'A us':>11}{'B us':>11}{'B/A':>8}{'+-%':>7}"
    lines = [heading]
    for row in rows:
        name = row.name
        lines.append(
            f"{name.op:18}{name.case:44}{name.way:30}{name.mode:7}{row.before.median * 1e6:11.1f}"
            f"{row.after.median * 1e6:11.1f}{row.ratio:8.3f}{row.spread * 100:7.1f}  {row.verdict(threshold)}".rstrip()
        )
    return "\n".join(lines)


def share(text: str) -> float:
    """A share given as `5%` or `0.05`."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument("--threshold", type=share, default=0.05, help="least difference that counts, such as 5%%")
    parser.add_argument("--across-devices", action="store_true", help="compare records of different devices")
    parser.add_argument("--peers", action="store_true", help="show the peers too; they are never called slower")


def main(options: argparse.Namespace) -> int:
    try:
        before, after = read(options.before), read(options.after)
    except (OSError, ValueError, KeyError) as error:
        print(f"cannot read a record: {error}", file=sys.stderr)
        return 2
    if reason := refusal(before, after, options.across_devices):
        print(reason, file=sys.stderr)
        return 2
    rows, worse = rows_of(before, after, options.peers), problems(before, after)
    if not rows and not worse:
        print("the records have no timing in common", file=sys.stderr)
        return 2
    print(text_of(rows, options.threshold))
    for name, version in before.versions.items():
        if after.versions.get(name) != version:
            print(f"{name}: {version} in A, {after.versions.get(name)} in B")
    print(*worse, sep="\n", end="\n" if worse else "")
    slower = [row for row in rows if is_own(row.name.way) and row.verdict(options.threshold) == "slower"]
    faster = [row for row in rows if is_own(row.name.way) and row.verdict(options.threshold) == "faster"]
    not_asked = sum(is_own(name.way) for name in before.timings) - len(asked_of(before, after))
    print(
        f"{len(slower)} slower, {len(faster)} faster, {len(worse)} failed, missing or wrong, of {len(rows)}; "
        f"{not_asked} of A not asked of B"
    )
    return 1 if slower or worse else 0
