"""Feed readers inputs that are made to reach their corners: `python -m tests.fuzz --inputs 100000`.

Needs atheris (`pip install -e '.[fuzz,test]'`), which changes inputs at random and keeps those that reach new code of
ahernet, beginning with good files. Every input must give a result or a UserError: no other exception, nothing that
takes longer than 20 seconds or a gigabyte more of memory, and nothing written or started outside of the input's folder.
Ends with exit code 1 at the first input of a reader that breaks this, which is kept in the folder of `--keep`. A short
form without guidance is part of the test-suite.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
NAMES = (
    "archive",
    "archive-tables",
    "annotations",
    "detections-json",
    "detections-csv",
    "detections-parquet",
    "checkpoint",
    "checkpoint-weights",
    "settings",
    "setting",
    "thresholds",
    "manifests",
    "arrays",
    "recordings",
    "foreign-features",
    "training-state",
    "backbone-weights",
    "own-records",
    "names",
)
MORE_MEMORY = 1 << 30
SLOWEST = 20  # seconds
MEMORY = Path("/dev/shm")  # a file system without a disk


def fuzz(name: str, inputs: int, seed: int, keep: Path, work: Path) -> None:
    """Feed a reader that many inputs, through files in `work`, and end this process: with code 0 if all went well."""
    import atheris

    with atheris.instrument_imports(include=["ahernet", "tomllib"]):
        from fuzz_readers import READERS, Watch, run

    from torch._weights_only_unpickler import Unpickler

    Unpickler.load = atheris.instrument_func(Unpickler.load)  # a part of torch: it decides what `.pt` files may say
    reader, watch = READERS[name], Watch()
    corpus = work / "corpus"
    corpus.mkdir()
    for number, content in enumerate(reader.seeds()):
        (corpus / f"seed-{number}").write_bytes(content)
    words = "".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word[:60])}"\n' for word in reader.words)
    (work / "words").write_text(words)
    longest = max(4096, 2 * max(map(len, reader.seeds())))
    for content in reader.seeds():  # what is imported late is imported now, and is not the input's memory
        run(reader, content, _emptied(work / "files"), watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, resource.RLIM_INFINITY))
    settings = {"runs": inputs, "seed": seed, "timeout": SLOWEST, "max_len": longest, "rss_limit_mb": 0}
    settings |= {"dict": work / "words"} if reader.words else {}
    settings |= {"artifact_prefix": f"{keep}/{name}-", "print_final_stats": 1}
    arguments = [f"-{key}={value}" for key, value in settings.items()]
    atheris.Setup(
        ["fuzz", *arguments, str(corpus)],
        lambda content: run(reader, content, _emptied(work / "files"), watch) and None,
    )
    atheris.Fuzz()


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def main() -> None:
    """Fuzz the readers that the command line names, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="for each reader (default: 100,000)")
    parser.add_argument("--reader", nargs="+", choices=NAMES, default=NAMES, help="these readers (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the changes (default: 1)")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="folder for inputs that break a reader"
    )
    options = parser.parse_args()
    options.keep.mkdir(exist_ok=True)
    failed = []
    for name in options.reader:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as work:
            child = os.fork()
            if not child:
                fuzz(name, options.inputs, options.seed, options.keep, Path(work))
            _, status = os.waitpid(child, 0)
        if status:
            failed.append(name)
        said = "BROKEN, see above" if status else f"{options.inputs:,} inputs, each a result or a UserError"
        print(f"{name}: {said}", flush=True)
    if not any(options.keep.iterdir()):
        options.keep.rmdir()
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
