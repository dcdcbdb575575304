"""Reading features: a feature archive in random order, against other files of the same rows.

python -m pytest bench/bench_archive.py

Wall time, because the archive reads with several threads. The page cache is warm: this is what the layouts and their
readers cost, not the disk. The archive joins the rows of a batch, in new memory or in memory that is kept, as
localization does; the sequential read goes into one block again and again, the least that reading can cost; the others
hand out one array a video.
"""

import functools
import mmap
import time
import zlib
from functools import cached_property

import h5py
import numpy as np
import pytest

from ahernet.data.archive import open_archive
from ahernet.data.archive_rows import page_aligned
from ahernet.data.archive_writer import ArchiveWriter
from bench.contest import FEWEST_TURNS, MOST_TURNS, SECONDS, Contest

CASES = {  # videos, mean rows of one, dimension
    "small": (8, 16, 32),
    "design": (400, 128, 2048),
}
BATCH = 32
BLOCK_BYTES = 1 << 24
WAYS = (
    "ahernet",
    "ahernet, into kept memory",
    "sequential read of the rows",
    "HDF5 group per video, h5py",
    "folder of .npy, np.load",
)


class WallContest(Contest):
    """Ways that take turns by the clock on the wall."""

    @cached_property
    def times(self):
        """Seconds of each turn of each way."""
        round_seconds = sum(_seconds(way) for way in self.ways.values())
        turns = max(FEWEST_TURNS, min(MOST_TURNS, int(SECONDS / round_seconds)))
        rounds = [[_seconds(way) for way in self.ways.values()] for _ in range(turns)]
        return dict(zip(self.ways, map(list, zip(*rounds, strict=True)), strict=True))


def _seconds(way):
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def write(folder, videos, mean_rows, dimension):
    """Write the same videos as an archive, as one HDF5 group each and as one .npy each."""
    generator = np.random.default_rng(0)
    (folder / "npy").mkdir()
    with (
        ArchiveWriter(folder / "archive.h5", dimension=dimension) as writer,
        h5py.File(folder / "groups.h5", "w") as groups,
    ):
        for video in range(videos):
            shape = generator.integers(mean_rows // 2, mean_rows * 3 // 2), dimension
            rows = generator.random(shape, np.float32).astype(np.float16)
            writer.add(f"v_{video}", rows)
            groups[f"v_{video}/c3d_features"] = rows
            np.save(folder / "npy" / f"v_{video}.npy", rows)


def from_archive(archive, order):
    for start in range(0, len(order), BATCH):
        yield archive.read(order[start : start + BATCH])[0]


def into_kept_memory(archive, order):
    lengths = archive.lengths
    kept = page_aligned((BATCH * int(lengths.max()), archive.dimension), archive.dtype)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        first, last = np.zeros(len(batch), np.int64), lengths[batch]
        yield archive.read_spans(batch, first, last, lambda shape, _: kept[: shape[0]])[0]


def from_block(file, start, size):
    file.seek(start)
    block = memoryview(mmap.mmap(-1, min(size, BLOCK_BYTES)))  # from a page on, as all fast reading is
    while size:
        count = file.readinto(block[:size])
        yield block[:count]
        size -= count


def from_groups(groups, order):
    for video in order:
        yield groups[f"v_{video}/c3d_features"][...]


def from_npy(folder, order):
    for video in order:
        yield np.load(folder / f"v_{video}.npy")


def drain(read):
    return (sum(part.nbytes for part in read()),)


def checksum(parts):
    """CRC-32 of all bytes in the order in which they come."""
    return functools.reduce(lambda sum_so_far, part: zlib.crc32(memoryview(part).cast("B"), sum_so_far), parts, 0)


@pytest.fixture(scope="module", params=CASES)
def contest(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    write(folder, *CASES[request.param])
    with h5py.File(folder / "archive.h5") as file:
        start, size = file["features"].id.get_offset(), file["features"].nbytes
    with (
        open_archive(folder / "archive.h5") as archive,
        h5py.File(folder / "groups.h5") as groups,
        (folder / "archive.h5").open("rb", buffering=0) as plain,
    ):
        order = np.random.default_rng(1).permutation(len(archive)).tolist()
        in_order = {
            "ahernet": functools.partial(from_archive, archive, order),
            "ahernet, into kept memory": functools.partial(into_kept_memory, archive, order),
            "HDF5 group per video, h5py": functools.partial(from_groups, groups, order),
            "folder of .npy, np.load": functools.partial(from_npy, folder / "npy", order),
        }
        sequential = functools.partial(from_block, plain, start, size)
        assert len({checksum(read()) for read in in_order.values()}) == 1
        assert checksum(sequential()) == checksum(from_archive(archive, range(len(archive))))
        readers = {**in_order, "sequential read of the rows": sequential}
        ways = {name: functools.partial(drain, readers[name]) for name in WAYS}
        sizes = {"videos": len(archive), "bytes": size, "batch": BATCH, "page cache": "warm", "clock": "wall"}
        yield WallContest(f"read archive, {request.param}", sizes, ways)
    for file in (folder / "npy").iterdir():
        file.unlink()
    (folder / "archive.h5").unlink()
    (folder / "groups.h5").unlink()


@pytest.mark.parametrize("way", WAYS)
def test_archive(race, benchmark, contest, way):
    race(contest, way)
    if not benchmark.disabled:
        rate = contest.sizes["bytes"] / np.median(contest.times[way]) / 1e9
        benchmark.extra_info["gigabytes_per_second"] = round(float(rate), 2)
