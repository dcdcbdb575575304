"""The GPU suite without a GPU: the smallest sizes of its lines, and a timer that makes times up."""

from bench import device_timing, lines

TINY = lines.Sizes(
    batch=3,
    small_batch=2,
    classes=7,
    most_ground_truths=4,
    outputs=10,
    many=(1100, 2300),
    stairs=1200,
    resampled_videos=3,
    mean_rows=12,
    dimension=8,
    steps=16,
    pairs=50,
    localized=(2,),
    trained=(3,),
    training_precision="float32",
    width=1 / 64,
    soft_candidates=(800,),
    sweep_videos=(1, 4),
    sweep_candidates=(32, 40),
    sweep_ground_truths=(1, 3),
    sweep_classes=(2, 5, 6),
    many_classes=9,
)
CEILINGS = {
    "copy_bytes_per_second": 3e12,
    "bf16_operations_per_second": 8e14,
    "fp32_operations_per_second": 5e13,
}


class FakeTimer:
    """Answers as `DeviceTimer` does, with made times."""

    def is_alive(self):
        return True

    def replays(self, calls, arguments, both=True, rounds=20):
        return {name: {mode: self.times(calls, name) for mode in ("cold", "hot")} for name in calls}

    def eager(self, calls, arguments):
        return {name: self.times(calls, name) for name in calls}

    def launches(self, call, arguments):
        return 1

    def times(self, calls, name):
        return device_timing.quantiles([1e-4 * (1 + list(calls).index(name))] * 5)


def gpu_record(medians, device="NVIDIA H0", half_spread=0.01, **settings):
    """A record of the GPU suite with made medians in microseconds by (op, case, way)."""
    entries = []
    for (op, case, way), median in medians.items():
        entry = {"op": op, "case": case, "way": way, "axis": "", "value": 0, "equal": 1.0, "required": 1.0}
        entry |= {"bytes": 3_000_000, "operations": 1_000_000, "matrix_operations": 0, "launches": 1}
        entry |= {"share_of_copy": 0.5, "share_of_matrix": 0.5, "share_of_ceiling": 0.5}
        for mode in ("cold", "hot", "eager"):
            low, high = median * (1 - half_spread), median * (1 + half_spread)
            entry[mode] = {"median_us": median, "q20_us": low, "q80_us": high, "n": 20}
        entries.append(entry)
    return {
        "schema": 2,
        "datetime": "2030-01-02T03:04:05+00:00",
        "commit": {"id": "0123456789abcdef", "dirty": False},
        "tests": "passed",
        "device": {"name": device, "torch": "2", "triton": "3", "python": "3.12", "numpy": "2", "driver": "1"},
        "ceilings": CEILINGS,
        "lines": entries,
        **settings,
    }


def cpu_record(medians, processor="P", half_spread=0.01):
    """A record of pytest-benchmark as the benches write it, with made medians in seconds by (group, way)."""
    return {
        "machine_info": {"processor": processor, "threads": 1, "python": "3.12", "torch": "2.13", "numpy": "2.4"},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2030-01-02T03:04:05",
        "benchmarks": [
            {
                "group": group,
                "name": f"test[{group}-{way}]",
                "param": None,
                "extra_info": {} if way is None else {"way": way},
                "stats": {"median": x, "q20": x * (1 - half_spread), "q80": x * (1 + half_spread)},
            }
            for (group, way), x in medians.items()
        ],
    }
