"""The GPU suite without a GPU: the smallest sizes of its lines, and a timer that makes times up."""

from bench import device_timing, lines

TINY = lines.Sizes(
    batch=3,
    small_batch=2,
    classes=7,
    most_ground_truths=4,
    outputs=10,
    many=(1100, 2300),
    resampled_videos=3,
    mean_rows=12,
    dimension=8,
    steps=16,
    pairs=50,
    localized=(2,),
    trained=(3,),
    training_precision="float32",
    width=1 / 64,
    sweep_videos=(1, 4),
    sweep_candidates=(32, 40),
    sweep_ground_truths=(1, 3),
    sweep_classes=(2, 5),
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

    def replays(self, calls, arguments):
        return {name: {mode: self.times(calls, name) for mode in ("cold", "hot")} for name in calls}

    def eager(self, calls, arguments):
        return {name: self.times(calls, name) for name in calls}

    def launches(self, call, arguments):
        return 1

    def times(self, calls, name):
        return device_timing.quantiles([1e-4 * (1 + list(calls).index(name))] * 5)
