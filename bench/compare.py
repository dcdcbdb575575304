"""Says what became slower, or faster, between two records of one device.

    python -m bench compare A.json B.json [--threshold 5%]

A row a timing of ours: medians, B of A, and the spread of both (half the distance of the 20 % and 80 % quantiles).
Slower is what takes more by the threshold and by more than the spread; also what ran in A and failed in B. Exit
status: 0, 1 if anything is slower, 2 if the records cannot be compared.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.records import OWN, Name, Recorded, Timing, read


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
    return way == OWN or way.startswith("part: ")


def newly_failed(before: Recorded, after: Recorded) -> list[tuple[str, str, str]]:
    """What ran before and fails now."""
    ran = {(name.op, name.case, name.way) for name in before.timings}
    return [key for key in after.failed if key in ran and is_own(key[2])]


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
    rows, failed = rows_of(before, after, options.peers), newly_failed(before, after)
    if not rows and not failed:
        print("the records have no timing in common", file=sys.stderr)
        return 2
    print(text_of(rows, options.threshold))
    for name, version in before.versions.items():
        if after.versions.get(name) != version:
            print(f"{name}: {version} in A, {after.versions.get(name)} in B")
    for op, case, way in failed:
        print(f"{op}, {case}, {way}: ran in A, in B it failed: {after.failed[op, case, way]}")
    slower = [row for row in rows if is_own(row.name.way) and row.verdict(options.threshold) == "slower"]
    faster = [row for row in rows if is_own(row.name.way) and row.verdict(options.threshold) == "faster"]
    only = len({name for name in before.timings if is_own(name.way)} - {row.name for row in rows})
    print(f"{len(slower)} slower, {len(faster)} faster, {len(failed)} newly failed, of {len(rows)}; {only} only in A")
    return 1 if slower or failed else 0
