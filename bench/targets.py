"""The targets that the project has set itself for a GPU, and what a record says of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.records import OWN

Entry = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One target: what was measured of it, in words, and whether it is met; None where it was not measured."""

    what: str
    target: str
    measured: str
    met: bool | None


class Lines:
    """The entries of a record by op, case and way, each as it is written there."""

    def __init__(self, record: dict[str, Any]) -> None:
        timed = (entry for entry in record["lines"] if "failed" not in entry)
        self.entries: dict[tuple[str, str, str], Entry] = {
            (entry["op"], entry["case"], entry["way"]): entry for entry in timed
        }

    def find(self, op: str, case: str, way: str = OWN) -> Entry:
        """The one entry; KeyError where there is none."""
        return self.entries[op, case, way]

    def median(self, op: str, case: str, way: str = OWN, mode: str = "cold") -> float:
        """Microseconds."""
        microseconds: float = self.find(op, case, way)[mode]["median_us"]
        return microseconds

    def times_ours(self, op: str, case: str, way: str, mode: str) -> float:
        """In how many times our time another way does the same."""
        return self.median(op, case, way, mode) / self.median(op, case, OWN, mode)


def share_of_copy(op: str, case: str, least: float) -> Callable[[Lines], tuple[str, bool]]:
    def look(lines: Lines) -> tuple[str, bool]:
        share = lines.find(op, case)["share_of_copy"]
        return f"{share:.0%}", share >= least

    return look


def times_ours(op: str, case: str, way: str, least: float) -> Callable[[Lines], tuple[str, bool]]:
    """As it is called, from Python; as replayed graphs, where the peer can be one, is said too."""

    def look(lines: Lines) -> tuple[str, bool]:
        eager = lines.times_ours(op, case, way, "eager")
        replayed = ""
        if "cold" in lines.find(op, case, way):
            replayed = f"; {lines.times_ours(op, case, way, 'cold'):.1f}x as graphs"
        return f"{eager:.1f}x{replayed}", eager >= least

    return look


def at_most(op: str, case: str, most: float) -> Callable[[Lines], tuple[str, bool]]:
    """Microseconds; what must be exact is only good if it is."""

    def look(lines: Lines) -> tuple[str, bool]:
        entry, median = lines.find(op, case), lines.median(op, case)
        exact = "" if entry["equal"] == 1 else f", but only {entry['equal']:.4%} agree"
        return f"{median:,.0f} us{exact}", median <= most and not exact

    return look


LOCALIZE, TRAINING = "B=256 D=2048 C=200 bf16", "B=256 D=2048 bf16"


def localized_rate(lines: Lines) -> tuple[str, bool]:
    entry = lines.find("localize", LOCALIZE)
    videos = 256 / (entry["cold"]["median_us"] * 1e-6)
    return f"{entry['share_of_matrix']:.0%}, {videos:,.0f} videos/s", entry["share_of_matrix"] >= 0.7


def after_the_backbone(lines: Lines) -> tuple[str, bool]:
    whole = lines.median("localize", LOCALIZE)
    before = sum(lines.median("localize", LOCALIZE, f"part: {part}") for part in ("resampling", "backbone"))
    return f"{1 - before / whole:.1%}", 1 - before / whole <= 0.05


def one_graph(lines: Lines) -> tuple[str, bool]:
    entry = lines.find("localize", LOCALIZE)
    captured = "cold" in entry or "hot" in entry
    return (f"captured, {entry['launches']} launches" if captured else entry.get("not_captured", "no")), captured


def trained_rate(lines: Lines) -> tuple[str, bool]:
    share = lines.find("training", TRAINING)["share_of_matrix"]
    return f"{share:.0%}", share >= 0.5


MANY = "one video N=1000000"
TARGETS: tuple[tuple[str, str, Callable[[Lines], tuple[str, bool]]], ...] = (
    # Channels last is how the network of this project hands its outputs to decode, channels first how others do.
    *(
        (f"decode, {size}, {layout}", target, look)
        for layout, suffix in (("channels last", " channels last"), ("channels first", ""))
        for size, target, look in (
            ("B=1024", ">= 80 % of copy bandwidth", share_of_copy("decode", f"B=1024 C=600 bf16{suffix}", 0.8)),
            ("B=64", ">= 10x eager torch", times_ours("decode", f"B=64 C=600 bf16{suffix}", "eager torch", 10)),
            ("B=64", ">= 3x torch.compile", times_ours("decode", f"B=64 C=600 bf16{suffix}", "torch.compile", 3)),
        )
    ),
    ("assign, B=1024 G<=25", ">= 20x the broadcast", times_ours("assign", "B=1024 G<=25", "torch broadcast", 20)),
    ("assign, B=1024 G<=25", "<= 50 us", at_most("assign", "B=1024 G<=25", 50)),
    ("nms, B=1024, best 100", "<= 400 us, exact", at_most("nms", "B=1024 N=765 tiou 0.9 best 100", 400)),
    (
        "nms, B=1024, best 100",
        ">= 20x torchvision",
        times_ours("nms", "B=1024 N=765 tiou 0.9 best 100", "torchvision, video by video", 20),
    ),
    ("nms, one video, N=10^6, best 100", "<= 5 ms, exact", at_most("nms", f"{MANY} tiou 0.9 best 100", 5000)),
    ("nms, one video, N=10^6, all", "<= 5 ms, exact", at_most("nms", f"{MANY} tiou 0.9 best 1000000", 5000)),
    ("resample, bf16", ">= 80 % of copy bandwidth", share_of_copy("resample", "B=256 L~440 D=2048 bfloat16", 0.8)),
    ("resample, fp32", ">= 80 % of copy bandwidth", share_of_copy("resample", "B=256 L~440 D=2048 float32", 0.8)),
    ("localize, B=256", ">= 70 % of the bf16 rate", localized_rate),
    ("localize, B=256", "<= 5 % after the backbone", after_the_backbone),
    ("localize, B=256", "one CUDA graph", one_graph),
    (
        "training, B=16",
        ">= 3x video by video",
        times_ours("training", "B=16 D=2048 bf16", "eager torch, video by video", 3),
    ),
    ("training, B=256", ">= 50 % of the bf16 rate", trained_rate),
)


def verdicts(record: dict[str, Any]) -> list[Verdict]:
    """Every target, and what the record says of it."""
    lines, found = Lines(record), []
    for what, target, look in TARGETS:
        try:
            found.append(Verdict(what, target, *look(lines)))
        except KeyError:
            found.append(Verdict(what, target, "not measured", None))
    return found


def text_of(record: dict[str, Any]) -> str:
    """The targets as a table."""
    marks = {True: "met", False: "NOT MET", None: "-"}
    return "\n".join(f"{v.what:34}{v.target:28}{v.measured:34}{marks[v.met]}" for v in verdicts(record))
