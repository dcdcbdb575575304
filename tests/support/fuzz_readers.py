"""The readers of files that users bring, as something to feed any bytes to: each gives a result or a UserError.

`run` holds one reader to it; `tests/fuzz.py` looks for inputs that break it, guided by what of the code they reach, and
a few changed files of every kind are read in the test-suite.
"""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import matplotlib.font_manager  # noqa: F401  (makes folders of its own when it is first imported)
import numpy as np
import safetensors.torch
import torch
from torch import nn

from ahernet.checkpoint import CHECKPOINT_NAME, load_checkpoint
from ahernet.commands.localization import read_thresholds
from ahernet.config import read_config
from ahernet.data.annotations import find_annotation_problems, read_annotations, read_class_names
from ahernet.data.archive import open_archive
from ahernet.data.archive_journal import open_journal
from ahernet.data.archive_set import open_features
from ahernet.data.array_files import read_array_file
from ahernet.data.detection_shards import load_detections
from ahernet.data.id_map import read_id_map
from ahernet.data.importers import open_source
from ahernet.data.inspection import format_inspection, inspect_archive
from ahernet.data.moment_labels import read_moment_labels
from ahernet.data.recordings import read_recordings
from ahernet.errors import UserError
from ahernet.experiments.runner import kept_result
from ahernet.experiments.setting_file import read_setting
from ahernet.extraction.backbones import Backbone, Preprocessing
from ahernet.extraction.weights import load_network
from ahernet.training.loss_log import draw_loss_curve
from ahernet.training.training_state import STATE_FORMAT, read_state

GOLDEN = Path(__file__).parents[1] / "ahernet" / "golden" / "version-1"
# What changes a file, a folder or another process, as Python announces it.
FORBIDDEN = ("os.rename", "os.link", "os.symlink", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.chmod")
FORBIDDEN += ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.bind")


@dataclass(frozen=True)
class Reader:
    """A reader, and where to begin.

    Attributes:
        seeds: good inputs.
        read: puts an input into a folder as the file that the reader takes, and reads it.
        words: that inputs of this kind are made of.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]
    words: tuple[bytes, ...] = ()


class Watch:
    """Notes what this process does to files outside a folder; there is one watch for all of a process."""

    def __init__(self) -> None:
        self._allowed = ""
        self._seen: list[str] = []
        sys.addaudithook(self._note)

    def begin(self, folder: Path) -> None:
        """Watch from now on; what happens in `folder` is allowed."""
        self._allowed, self._seen = f"{folder}{os.sep}", []

    def end(self) -> list[str]:
        """Stop, and return what happened elsewhere."""
        self._allowed = ""
        return self._seen

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._allowed:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and not isinstance(path, int) and not str(path).startswith((self._allowed, "/dev/null")):
                self._seen.append(f"opens {path!r} for writing")
        elif event in FORBIDDEN and not _place(event, arguments).startswith(self._allowed):
            self._seen.append(f"{event} {arguments!r:.200}")


def _place(event: str, arguments: tuple[Any, ...]) -> str:
    """What an event is about; where a tree is removed, names are of an open folder."""
    path = str(arguments[0]) if arguments else ""
    if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
        return str(Path(f"/proc/self/fd/{arguments[1]}").readlink() / path)
    return path


def run(reader: Reader, content: bytes, folder: Path, watch: Watch) -> bool:
    """Feed an input to a reader and return whether it took it.

    Raises:
        AssertionError: it did something outside of the folder, or refused the input without words.
        Exception: any other than a UserError, which the user would see as a traceback.
    """
    watch.begin(folder)
    try:
        reader.read(folder, content)
        taken, message = True, ""
    except UserError as error:
        taken, message = False, str(error)
    assert taken or message.strip(), "a UserError without a message"
    done = watch.end()
    assert not done, f"outside of the folder: {done}"
    return taken


def changed(content: bytes, words: tuple[bytes, ...], randomness: random.Random) -> bytes:
    """Return an input with a few random changes."""
    changing = bytearray(content)
    for _ in range(randomness.randint(1, 4)):
        place = randomness.randrange(len(changing) + 1)
        length = min(1 << randomness.randrange(8), len(changing) - place)
        match randomness.randrange(6):
            case 0 if place < len(changing):
                changing[place] ^= 1 << randomness.randrange(8)
            case 1:
                changing[place : place + length] = randomness.randbytes(length)
            case 2:
                del changing[place : place + length]
            case 3:
                changing[place:place] = changing[place : place + length]
            case 4 if words:
                changing[place : place + randomness.choice((0, length))] = randomness.choice(words)
            case 5 if randomness.random() < 0.2:
                del changing[place:]
    return bytes(changing)


def _golden(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(GOLDEN / name).read_bytes() for name in names]


def _at(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _archive(folder: Path, content: bytes) -> None:
    path = _at(folder, "archive.h5", content)
    with suppress(UserError), open_archive(path) as archive:
        list(archive.verify())
    format_inspection(inspect_archive(path))


def _tables(folder: Path, content: bytes) -> None:
    """Read an archive whose attributes and tables are what the input says, so that the library itself has no fault."""
    path = folder / "archive.h5"
    take = _Bytes(content)
    with h5py.File(path, "w") as file:
        good = {"format": "ahernet-archive", "version": 1, "dimension": 2, "frame_rate": 25.0, "clip_stride": 8}
        for name, value in (good | {"origin": ""}).items():
            changed_value = take.value(value)
            if changed_value is not None:
                file.attrs[name] = changed_value
        rows = np.arange(12, dtype="<f2").reshape(6, 2)
        checksums = np.array([zlib.crc32(rows[:2]), zlib.crc32(rows[2:])], "<u4")
        tables = {
            "features": rows,
            "offsets": np.array([0, 2, 6]),
            "ids": np.array([b"a", b"b"]),
            "durations": np.array([1.0, np.nan]),
            "crc32": checksums,
        }
        for name, table in tables.items():
            _put(file, name, table, take)
    with suppress(UserError), open_archive(path) as archive:
        list(archive.verify())
    format_inspection(inspect_archive(path))


def _put(file: h5py.File, name: str, table: np.ndarray, take: "_Bytes") -> None:
    """Put a table into a file, or what the input puts in its place."""
    match take.number(12):
        case 0:
            return
        case 1:
            kind = take.choice(("<f2", "<f4", "<f8", "<i8", "<u4", "<i4", "u1", "S3", "?", "<c8"))
            plain = np.nan_to_num(table) if table.dtype.kind == "f" else table
            table = np.zeros(table.shape, kind) if table.dtype.kind == "S" else plain.astype(kind)
        case 2:
            table = table[: take.number(len(table) + 1)]
        case 3:
            raw = take.rest(table.nbytes).ljust(table.nbytes, b"\0")
            table = np.frombuffer(raw, table.dtype).reshape(table.shape)
        case 4:
            table = table.reshape(take.choice(((-1,), (1, -1), (-1, 1), (1, 1, -1))))
        case 5:
            file[name] = h5py.SoftLink(take.choice(("/features", "/ids", "/nowhere", "/", f"/{name}")))
            return
        case 6:
            shape = (1 << take.number(40), *table.shape[1:])
            file.create_dataset(name, shape, table.dtype, chunks=(1, *table.shape[1:]))
            return
        case 7:
            options = take.choice(
                ({"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True, "fletcher32": True})
            )
            file.create_dataset(name, data=table, chunks=table.shape, **options)
            return
        case 8:
            file.create_group(name)
            return
    file[name] = table


class _Bytes:
    """Takes decisions from an input, byte by byte; the last of the choices, which changes nothing, after its end."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def number(self, count: int) -> int:
        byte = self._content.read(1)
        return byte[0] % count if byte else count - 1

    def choice(self, among: tuple[Any, ...]) -> Any:
        return among[self.number(len(among))]

    def rest(self, count: int) -> bytes:
        return self._content.read(count)

    def value(self, good: object) -> object:
        """Return an attribute: the good one more often than not."""
        kind = self.number(16)
        other: tuple[object, ...] = (
            None,
            -1,
            0,
            2,
            1 << 40,
            float("nan"),
            float("inf"),
            "",
            "x" * 300,
            b"\xff",
            [1, 2],
        )
        return other[kind] if kind < len(other) and self.number(4) == 0 else good


def _annotations(folder: Path, content: bytes) -> None:
    kind, content = content[:1], content[1:]
    if kind == b"t":
        names = _at(folder, "names.txt", b"run\njump\n")
        annotations = read_annotations(_at(folder, "annotations.txt", content), names)
    elif kind == b"z":
        annotations = read_annotations(_at(folder, "annotations.json.gz", content))
    elif kind == b"s":
        good = _at(folder, "annotations.json", (GOLDEN / "annotations.json").read_bytes())
        annotations = read_annotations(good, subsets=_at(folder, "subsets.csv", content))
    else:
        annotations = read_annotations(_at(folder, "annotations.json", content))
    find_annotation_problems(annotations)


def _annotation_seeds() -> list[bytes]:
    content = (GOLDEN / "annotations.json").read_bytes()
    flat = {"v": {"duration_second": 9.5, "subset": "x", "annotations": [{"segment": [1, 2], "label": "run"}]}}
    table = b"video1\t0.5\t1.5\t0\nvideo2\t1\t2\t1\n"
    subsets = "".join(f"{name},a\n" for name in json.loads(content)["database"])
    return [
        b"j" + content,
        b"j" + json.dumps(flat).encode(),
        b"z" + gzip.compress(content),
        b"t" + table,
        (f"svideo,subset\n{subsets}".encode()),
    ]


def _detections(name: str) -> Callable[[Path, bytes], object]:
    return lambda folder, content: load_detections(_at(folder, name, content))


def _checkpoint(folder: Path, content: bytes) -> None:
    for path in (GOLDEN / "run").glob("*.safetensors"):
        _at(folder, path.name, path.read_bytes())
    _at(folder, CHECKPOINT_NAME, content)
    load_checkpoint(folder)


def _weights(folder: Path, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    for old in folder.glob("*.safetensors"):
        old.unlink()
    name = _at(folder, f"weights-{digest[:12]}.safetensors", content).name
    described = json.loads((GOLDEN / "run" / CHECKPOINT_NAME).read_bytes())
    described["weights"] = {"file": name, "sha256": digest}
    _at(folder, CHECKPOINT_NAME, json.dumps(described).encode())
    load_checkpoint(folder)


def _weight_seeds() -> list[bytes]:
    return [path.read_bytes() for path in (GOLDEN / "run").glob("*.safetensors")]


def _setting(folder: Path, content: bytes) -> None:
    _at(folder, "base.txt", b"action 01\n")
    _at(folder, "novel.txt", b"action 02\n")
    for name in ("archive.h5", "annotations.json"):
        _at(folder, name, (GOLDEN / name).read_bytes())
    read_setting(_at(folder, "setting.toml", content), folder / "moments")


def _recordings(folder: Path, content: bytes) -> None:
    read_recordings(_at(folder, "recordings.npz", content))


def _recording_seeds() -> list[bytes]:
    file = io.BytesIO()
    np.savez(
        file,
        x=np.arange(120, dtype=np.int8).reshape(40, 3),
        scale=np.float32(0.5),
        zero=np.zeros(3, np.float32),
        rec_offset=np.array([0, 25, 40]),
        rec_id=np.array(["one", "two"]),
        subject=np.array([1, 2]),
        rate_hz=np.float64(5),
        seg_rec=np.array([0, 0, 1]),
        seg_start=np.array([0.5, 2.0, 0.0]),
        seg_end=np.array([1.5, 4.0, 3.0]),
        seg_class=np.array([0, 1, 0]),
        class_names=np.array(["run", "jump"]),
    )
    return [file.getvalue()]


def _foreign(folder: Path, content: bytes) -> None:
    with open_source(_at(folder, "features.h5", content)) as source:
        for video in source.videos:
            video.read()


def _foreign_seeds() -> list[bytes]:
    seeds = []
    for names in (("a", "b"), ("a/c3d_features", "b/c3d_features")):
        file = io.BytesIO()
        with h5py.File(file, "w") as written:
            for name in names:
                written[name] = np.ones((3, 4), np.float32)
        seeds.append(file.getvalue())
    return seeds


def _state(folder: Path, content: bytes) -> None:
    read_state(_at(folder, "training_state.pt", content))


def _state_seeds() -> list[bytes]:
    file = io.BytesIO()
    torch.save({"format": STATE_FORMAT, "iteration": 3, "networks": {"weight": torch.ones(2, 3)}}, file)
    return [file.getvalue()]


BACKBONE = Backbone(
    "fuzzed",
    dimension=2,
    build=lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
    preprocessing=Preprocessing(1, 1),
)
WEIGHTS = {**BACKBONE.build().state_dict(), "fc.weight": torch.ones(2)}


def _backbone(folder: Path, content: bytes) -> None:
    """Read weights: a file as it is, or the pickle within one, whose checksum is made right."""
    kind, content = content[:1], content[1:]
    if kind == b"p":
        content = _zipped(content)
    load_network(BACKBONE, _at(folder, "weights.safetensors" if kind == b"s" else "weights.pt", content))


def _backbone_seeds() -> list[bytes]:
    published = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}}
    old = io.BytesIO()
    torch.save(published, old, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(io.BytesIO(_saved(WEIGHTS))) as archive:
        pickled = archive.read("archive/data.pkl")
    return [b"s" + safetensors.torch.save(WEIGHTS), b"z" + _saved(published), b"l" + old.getvalue(), b"p" + pickled]


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _zipped(pickled: bytes) -> bytes:
    """Return a file of `torch.save` with another pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved(WEIGHTS))) as good, zipfile.ZipFile(file, "w") as made:
        for name in good.namelist():
            made.writestr(name, pickled if name.endswith("/data.pkl") else good.read(name))
    return file.getvalue()


def _own_records(folder: Path, content: bytes) -> None:
    """What commands go on with: a loss log, a result of an experiment, and what is left of an archive begun."""
    kind, content = content[:1], content[1:]
    if kind == b"l":
        draw_loss_curve(_at(folder, "losses.jsonl", content), folder / "losses.png")
    elif kind == b"r":
        kept_result(_at(folder, "result.json", content), {}, {"seed": 0}, dict)
    else:
        partial = folder / "a.h5.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, good in PARTIAL.items():
            (partial / name).write_bytes(good)
        (partial / ("settings.json" if kind == b"s" else "journal.jsonl")).write_bytes(content)
        with open_journal(folder / "a.h5", dimension=3, dtype="float16", settings={}):
            pass


def _partial() -> dict[str, bytes]:
    """What a killed writer leaves."""
    with tempfile.TemporaryDirectory() as folder, suppress(ZeroDivisionError):
        out = Path(folder) / "a.h5"
        with open_journal(out, dimension=3, dtype="float16", settings={}) as journal:
            for name in "ab":
                journal.add(name, np.ones((2, 3), np.float16), 1.0, "source", ["short"])
            left = {path.name: path.read_bytes() for path in Path(f"{out}.partial").iterdir()}
            raise ZeroDivisionError
    return left


PARTIAL = _partial()
SETTING = b"""name = "a setting"
[base]
classes = "base.txt"
annotations = "annotations.json"
archive = "archive.h5"
training = "training"
[novel]
classes = "novel.txt"
annotations = "annotations.json"
archive = "archive.h5"
training = "training"
validation = "validation"
"""
CONFIG = b"""preset = "tiny"
[training]
iterations = 400
learning_rate = 1e-3
deterministic = true
[model]
width = 0.5
[inference]
suppression = "gaussian"
"""


def _manifest(folder: Path, content: bytes) -> None:
    kind, content = content[:1], content[1:]
    for source in (GOLDEN / "set", GOLDEN / "detections"):
        for path in source.glob("*.*[5t]"):
            _at(folder, path.name, path.read_bytes())
    _at(folder, "manifest.json", content)
    if kind == b"d":
        load_detections(folder)
    else:
        open_features(folder).close()


def _arrays(folder: Path, content: bytes) -> None:
    suffix = {b"n": ".npy", b"z": ".npz", b"p": ".pt"}.get(content[:1], ".csv")
    np.array(read_array_file(_at(folder, f"array{suffix}", content[1:])))


def _array_seeds() -> list[bytes]:
    rows = np.arange(6, dtype="f4").reshape(3, 2)
    files = {}
    for kind, write in (
        (b"n", lambda file: np.save(file, rows)),
        (b"z", lambda file: np.savez(file, features=rows, other=rows)),
        (b"p", lambda file: torch.save({"features": torch.tensor(rows)}, file)),
        (b"c", lambda file: np.savetxt(file, rows, delimiter=",", header="f0,f1")),
    ):
        file = io.BytesIO()
        write(file)
        files[kind] = file.getvalue()
    return [kind + content for kind, content in files.items()]


def _names(folder: Path, content: bytes) -> None:
    kind, content = content[:1], content[1:]
    if kind == b"m":
        read_id_map(_at(folder, "map.csv", content))
    elif kind == b"l":
        read_moment_labels(_at(folder, "labels.csv", content))
    elif kind == b"j":
        read_moment_labels(_at(folder, "labels.json", content))
    else:
        read_class_names(_at(folder, "classes.txt", content))


NAMES = [
    b"ma,b\nc,d\n",
    b"lvideo,label\nv1,run\nv2,jump\n",
    b"llabel,youtube_id,time_start,time_end,split\nrun,abc,0,10,train\n",
    b"crun\njump\n",
]
NUMBERS = (b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 5000, b"null", b"true", b"[]", b"{}", b'""', b"\xff", b"\0")
JSON_WORDS = (*NUMBERS, b'"segment"', b'"label"', b'"score"', b'"results"', b'"database"', b'"\\ud800"', b"[" * 3000)
REBUILT = ("tensor_v2", "parameter", "sparse_tensor", "qtensor", "meta_tensor_no_storage", "nested_tensor")
H5_WORDS = (b"\x89HDF\r\n\x1a\n", b"TREE", b"SNOD", b"HEAP", b"OHDR", b"\xff" * 8)

READERS = {
    "archive": Reader(_golden("unusual.h5", "set/first.h5"), _archive, H5_WORDS),
    "archive-tables": Reader(lambda: [b"", b"\x0f" * 6 + b"\x0b" * 5], _tables),
    "annotations": Reader(_annotation_seeds, _annotations, JSON_WORDS),
    "detections-json": Reader(_golden("detections.json"), _detections("found.json"), JSON_WORDS),
    "detections-csv": Reader(_golden("detections.csv"), _detections("found.csv"), (*NUMBERS, b'"', b"\r", b",")),
    "detections-parquet": Reader(_golden("detections/part-000000.parquet"), _detections("found.parquet"), (b"PAR1",)),
    "checkpoint": Reader(_golden(f"run/{CHECKPOINT_NAME}"), _checkpoint, (*JSON_WORDS, b'"version"', b'"config"')),
    "checkpoint-weights": Reader(_weight_seeds, _weights, (*JSON_WORDS, b'"dtype"', b'"F16"', b'"data_offsets"')),
    "settings": Reader(lambda: [CONFIG], lambda folder, content: read_config(_at(folder, "c.toml", content)), NUMBERS),
    "setting": Reader(lambda: [SETTING], _setting, (b"[moments]", b'labels = "', b"..", b"\\u0000", *NUMBERS)),
    "thresholds": Reader(
        lambda: [b'{"run": 0.25, "jump": 1}'],
        lambda folder, content: read_thresholds(_at(folder, "t.json", content)),
        JSON_WORDS,
    ),
    "manifests": Reader(
        lambda: [
            b"s" + (GOLDEN / "set" / "manifest.json").read_bytes(),
            b"d" + (GOLDEN / "detections" / "manifest.json").read_bytes(),
        ],
        _manifest,
        (*JSON_WORDS, b'"../"', b'"shards"', b'"file"'),
    ),
    "arrays": Reader(_array_seeds, _arrays, (*NUMBERS, b"PK\x03\x04", b"\x93NUMPY", b"'descr': '|O'")),
    "recordings": Reader(_recording_seeds, _recordings, (*NUMBERS, b"PK\x03\x04", b"\x93NUMPY", b"'descr': '|O'")),
    "foreign-features": Reader(_foreign_seeds, _foreign, H5_WORDS),
    "training-state": Reader(_state_seeds, _state, (b"PK\x01\x02", b"PK\x03\x04", b"ctorch\n", *NUMBERS)),
    "backbone-weights": Reader(
        _backbone_seeds,
        _backbone,
        (
            *(f"ctorch._utils\n_rebuild_{name}\n".encode() for name in REBUILT),
            *(f"ctorch\n{name}\n".encode() for name in ("float8_e4m3fn", "complex64", "sparse_coo", "device", "Size")),
            *(b"ctorch\nQInt8Storage\n", b"ccollections\nOrderedDict\n", b"X\x04\0\0\0meta", b"PK\x01\x02"),
            *(b'"dtype"', b'"BOOL"', b'"F4"', b'"F8_E8M0"', b'"C64"', b'"data_offsets"', *NUMBERS),
        ),
    ),
    "own-records": Reader(
        lambda: [
            b'l{"iteration": 0, "total": 1.5, "learning_rate": 0.1}\n' * 2,
            b'r{"seed": 0, "a": 1}',
            b"s" + PARTIAL["settings.json"],
            b"j" + PARTIAL["journal.jsonl"],
        ],
        _own_records,
        (*JSON_WORDS, b'"rows"', b'"first"', b'"crc32"'),
    ),
    "names": Reader(lambda: NAMES, _names, (*NUMBERS, b'"', b",", b"\n", b"\r", b"v_")),
}
