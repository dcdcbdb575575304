"""Pictures from records alone, and what is in them."""

import json

import pytest
from bench_fakes import cpu_record, gpu_record

from bench import __main__ as command
from bench import report

pytest.importorskip("matplotlib")


@pytest.fixture
def record():
    record = gpu_record(
        {
            ("decode", "B=64", "ahernet"): 10.0,
            ("decode", "B=64", "eager torch"): 35.0,
            ("decode", "sweep of videos, B=8", "ahernet"): 4.0,
            ("decode", "sweep of videos, B=1", "ahernet"): 2.0,
            ("localize", "B=256", "ahernet"): 1000.0,
            ("localize", "B=256", "part: backbone"): 900.0,
            ("nms", "B=64", "ahernet"): 10.0,
        }
    )
    lines = {(entry["case"], entry["way"]): entry for entry in record["lines"]}
    for value in (8, 1):
        lines[f"sweep of videos, B={value}", "ahernet"].update(axis="videos", value=value)
    lines["B=256", "ahernet"].update(operations=0, matrix_operations=600_000_000_000)
    record["lines"][-1]["operations"] = 0
    record["lines"].append({"op": "nms", "case": "B=1", "way": "ahernet", "failed": "RuntimeError: no"})
    return record


def test_dots_are_operations_per_byte_and_a_second(record):
    found = report.points(record)
    assert found["localize"] == [(pytest.approx(2e5), pytest.approx(6e14))]
    assert len(found["decode"]) == 3
    assert "nms" not in found


def test_speed_ups_are_times_our_time_without_sweeps_and_parts(record):
    assert report.speedups(record) == {"decode, B=64": {"eager torch": pytest.approx(3.5)}}


def test_a_peer_that_is_only_called_is_compared_with_our_call(record):
    own, peer = record["lines"][:2]
    own["eager"]["median_us"] = 20.0
    del peer["cold"], peer["hot"]
    assert report.speedups(record) == {"decode, B=64": {"eager torch": pytest.approx(35 / 20)}}


def test_sweeps_are_in_ascending_order(record):
    assert report.sweeps(record) == {
        ("decode", "videos"): {"ahernet": [(1, pytest.approx(2e-6)), (8, pytest.approx(4e-6))]}
    }


def test_pictures_and_tables_are_written_from_the_file_alone(record, tmp_path, capsys):
    cpu = cpu_record({("nms, design", "ahernet"): 0.01, ("nms, design", "C++"): 0.005})
    for name, made in (("gpu_made", record), ("cpu_made", cpu)):
        (tmp_path / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")
    paths = [str(tmp_path / f"{name}.json") for name in ("gpu_made", "cpu_made")]
    assert command.main(["report", *paths, "--out", str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "gpu_made.md",
        "gpu_made_roofline.png",
        "gpu_made_speedups.png",
        "gpu_made_sweeps.png",
        "cpu_made.md",
        "cpu_made_speedups.png",
    }
    assert all((tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG" for name in written if name.endswith("png"))
    assert len(capsys.readouterr().out.splitlines()) == len(written)


def test_a_file_that_is_no_record_is_refused(tmp_path, capsys):
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    assert command.main(["report", str(tmp_path / "other.json")]) == 2
    assert "neither a record" in capsys.readouterr().err
