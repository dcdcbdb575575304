"""The short table of a recorded CPU run, in Markdown, and its place in the README.

python -m bench.table bench/results/cpu_<date>.json            print it
python -m bench.table --readme bench/results/cpu_<date>.json   put it into bench/README.md
"""

import argparse
import json
from pathlib import Path
from typing import Any

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table: written by bench.table -->", "<!-- end of table -->"
OWN = "ahernet"


def table(record: dict[str, Any]) -> str:
    """One row a way: median and 20 % to 80 % quantiles in milliseconds, and how many times ours it takes."""
    machine, commit = record["machine_info"], record["commit_info"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numpy"))
    changed = " with changes" if commit["dirty"] else ""
    rows = [
        f"{record['datetime'][:10]}, {machine['processor']}, {machine['threads']} thread, {versions}, "
        f"commit {commit['id'][:12]}{changed}.",
        "",
        "| case | way | median, ms | 20 % - 80 % | times ours |",
        "|---|---|---:|---:|---:|",
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in record["benchmarks"]:
        if "way" in entry["extra_info"] and not entry["group"].endswith(", small"):
            groups.setdefault(entry["group"], []).append(entry)
    for group, entries in groups.items():
        own = next(entry["stats"]["median"] for entry in entries if entry["extra_info"]["way"] == OWN)
        for entry in entries:
            statistics = entry["stats"]
            low, median, high = (f"{statistics[name] * 1e3:.2f}" for name in ("q20", "median", "q80"))
            times = f"{statistics['median'] / own:.2f}"
            rows.append(f"| {group} | {entry['extra_info']['way']} | {median} | {low} - {high} | {times} |")
    return "\n".join(rows)


def with_table(readme: str, name: str, text: str) -> str:
    """The README with this table between the marks, and the name of its record."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\nFrom `results/{name}`: {text}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--readme", action="store_true", help="write it into bench/README.md")
    options = parser.parse_args()
    text = table(json.loads(options.record.read_text(encoding="utf-8")))
    if options.readme:
        README.write_text(with_table(README.read_text(encoding="utf-8"), options.record.name, text), encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
