"""Whole pipelines: from feature rows to detections, and an iteration of training.

Imports stay with their group: it alone fails where one is absent.
"""

from collections.abc import Iterator

from torch import Tensor

from bench.lines.line import CANDIDATE_CLASSES, Line, Sizes

LOCALIZED = 2  # videos that the CPU localizes in


def localize_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    from bench.localization import Localization

    def first_videos(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows, offsets = arguments
        return rows[: int(offsets[LOCALIZED])], offsets[: LOCALIZED + 1]

    for videos in sizes.localized:
        localization = Localization(device, videos, CANDIDATE_CLASSES, sizes.width, sizes.mean_rows)
        yield Line(
            "localize",
            f"B={videos} D={localization.model.feature_dimension} C={CANDIDATE_CLASSES} bf16",
            localization.arguments,
            localization.call,
            first_videos,
            compared=localization.compared,
            reference=localization.on_cpu,
            # The network is in bf16, on the CPU in fp32: of two classes that are nearly equal either may be the label.
            tolerance=2e-2,
            required=0.95,
            uncapturable={"eager torch, peers' forms": localization.peer},
            parts=localization.parts(),
            cost=localization.cost,
        )


def training_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    from ahernet.training.captured_steps import EAGER
    from bench.training import Training

    for videos in sizes.trained:
        training = Training(device, videos, CANDIDATE_CLASSES, sizes.width, sizes.mean_rows, sizes.training_precision)
        peers = {"eager torch, video by video": training.peer}
        if device == "cuda":
            peers["ahernet, launch by launch"] = training.eager
            for _ in range(EAGER):  # so that what is checked is a replay
                training.call(training.batch)
        yield Line(
            "training",
            f"B={videos} D={training.config.model.feature_dimension} bf16",
            (training.batch,),
            training.call,
            compared=training.with_gradients(training.call),
            reference=training.with_gradients(training.peer),
            # Features resampled in another order of sums are rounded to other bf16 values.
            tolerance=2e-2,
            uncapturable=peers,
            cost=training.cost,
            capture=False,
        )
