"""The tables of recorded runs in Markdown, and their places in the README."""

from pathlib import Path
from typing import Any

from bench.records import MODES, OWN, ceilings_text, is_gpu
from bench.targets import verdicts

README = Path(__file__).with_name("README.md")
END = "<!-- end of table -->"

Record = dict[str, Any]


def table(record: Record) -> str:
    """The table of a record of either kind."""
    return gpu_table(record) if is_gpu(record) else cpu_table(record)


def cpu_table(record: Record) -> str:
    """One row a way: median and 20 % to 80 % quantiles in milliseconds, and how many times ours it takes."""
    machine = record["machine_info"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numpy", "numba") if name in machine)
    rows = [
        f"{record['datetime'][:10]}, {machine['processor']}, {machine['threads']} thread, {versions}, "
        f"{_commit(record['commit_info'])}.",
        "",
        "| case | way | median, ms | 20 % - 80 % | times ours |",
        "|---|---|---:|---:|---:|",
    ]
    groups: dict[str, list[Record]] = {}
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


def gpu_table(record: Record) -> str:
    """Targets first, then one row a way: microseconds, launches, share of the floor, and how many times ours."""
    device, ceilings = record["device"], record["ceilings"]
    versions = ", ".join(f"{name} {device[name]}" for name in ("python", "torch", "triton"))
    rows = [
        f"{record['datetime'][:10]}, {device['name']}, {versions}, {_commit(record['commit'])}; kernel tests: "
        f"{record['tests']}. Ceilings measured in the same run: {ceilings_text(ceilings)}.",
        "",
        "| target | | measured | met |",
        "|---|---|---|---|",
    ]
    marks = {True: "yes", False: "**no**", None: "-"}
    rows += [f"| {v.what} | {v.target} | {v.measured} | {marks[v.met]} |" for v in verdicts(record)]
    rows += [
        "",
        "| op | case | way | cold, us | +- % | hot, us | called, us | launches | % of floor | times ours | equal |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    own: Record = {}
    for entry in record["lines"]:
        own = entry if entry["way"] == OWN else own
        if not entry.get("axis") or entry["axis"] == "many":  # sweeps are drawn
            rows.append(f"| {' | '.join(_cells(entry, own))} |")
    return "\n".join(rows)


def _cells(entry: Record, own: Record) -> list[str]:
    named = [entry["op"], entry["case"], entry["way"]]
    mode = next((mode for mode in MODES if mode in entry), None)
    if mode is None:
        return [*named, f"failed: {entry.get('failed', 'nothing was timed')}", *[""] * 7]
    spread = (entry[mode]["q80_us"] - entry[mode]["q20_us"]) / 2 / entry[mode]["median_us"]
    comparable = mode in own and own["case"] == entry["case"]
    cold, hot, eager = (f"{entry[mode]['median_us']:,.1f}" if mode in entry else "-" for mode in MODES)
    return [
        *named,
        cold,
        f"{spread * 100:.1f}",
        hot,
        eager,
        str(entry["launches"] or "-"),
        f"{entry['share_of_ceiling'] * 100:.1f}" if "share_of_ceiling" in entry else "-",
        f"{entry[mode]['median_us'] / own[mode]['median_us']:.2f}" if comparable else "-",
        "-" if "equal" not in entry else "yes" if entry["equal"] == 1 else f"{entry['equal']:.3%}",
    ]


def _commit(commit: Record) -> str:
    return f"commit {(commit['id'] or 'unknown')[:12]}{' with changes' if commit['dirty'] else ''}"


def begin(record: Record) -> str:
    """The mark in the README behind which the table of such a record stands."""
    return f"<!-- {'gpu' if is_gpu(record) else 'cpu'} table: written by python -m bench report -->"


def with_table(readme: str, name: str, record: Record) -> str:
    """The README with the table of this record between the marks, and its name."""
    mark = begin(record)
    before, rest = readme.split(mark)
    _, after = rest.split(END, maxsplit=1)
    return f"{before}{mark}\n\nFrom `results/{name}`: {table(record)}\n\n{END}{after}"
