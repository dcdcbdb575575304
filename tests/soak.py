"""What long runs have in common: a thread that watches memory and open files, and what is said of them in the end."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

SAMPLE_SECONDS = 2.0
TOLERATED_BYTES = 16 << 20  # that memory may grow by from the first half to the last quarter


@dataclass(frozen=True)
class Sample:
    """What the process holds after some seconds: bytes of memory, open files."""

    seconds: float
    memory: int
    files: int


@contextmanager
def watched() -> Iterator[list[Sample]]:
    """Sample the process in a thread for as long as the context lasts."""
    samples: list[Sample] = []
    done = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = len(list(Path("/proc/self/fd").iterdir()))
            samples.append(Sample(time.monotonic() - start, pages * os.sysconf("SC_PAGE_SIZE"), files))

    thread = threading.Thread(target=watch, name="soak-watch")
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def report(samples: list[Sample]) -> bool:
    """Print how memory and open files went; return whether neither grew."""
    if len(samples) < 8:
        print(f"only {len(samples)} samples: give more iterations")
        return False
    seconds, memory, files = np.array([astuple(sample) for sample in samples], float).T
    half, quarter = len(samples) // 2, len(samples) // 4
    slope = np.polyfit(seconds[quarter:], memory[quarter:], 1)[0]
    grown = memory[-quarter:].mean() - memory[quarter:half].mean()
    more_files = files[-quarter:].max() - files[:half].max()
    print(f"{len(samples)} samples in {seconds[-1]:.0f} s")
    print(f"memory  first {memory[0] / 1e6:.1f} MB, last {memory[-1] / 1e6:.1f} MB, peak {memory.max() / 1e6:.1f} MB")
    print(f"        slope after the first quarter {slope * 3600 / 1e6:+.1f} MB an hour")
    print(f"        last quarter against the second {grown / 1e6:+.1f} MB, tolerated {TOLERATED_BYTES / 1e6:.1f} MB")
    print(f"files   first {files[0]:.0f}, last {files[-1]:.0f}, most {files.max():.0f}")
    return bool(grown < TOLERATED_BYTES and more_files <= 2)
