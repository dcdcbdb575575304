"""Whole pipelines: from feature rows to detections, and an iteration of training.

Imports stay with their group: it alone fails where one is absent.
"""

from collections.abc import Iterator

from bench.lines.line import CANDIDATE_CLASSES, CLOSE, Line, Sizes


def localize_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    from bench.localization import Localization

    for videos in sizes.localized:
        localization = Localization(device, videos, CANDIDATE_CLASSES, sizes.width, sizes.mean_rows)
        yield Line(
            "localize",
            f"B={videos} D={localization.model.feature_dimension} C={CANDIDATE_CLASSES} bf16",
            localization.arguments,
            localization.call,
            reference=localization.call,  # that every replay and call repeats bit for bit; tests compare with the CPU
            uncapturable={"eager torch, peers' forms": localization.peer},
            tolerance=CLOSE,
            parts=localization.parts(),
            cost=localization.cost,
        )


def training_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    from bench.training import Training

    for videos in sizes.trained:
        training = Training(device, videos, CANDIDATE_CLASSES, sizes.width, sizes.mean_rows, sizes.training_precision)
        peers = {"eager torch, video by video": training.peer}
        if device == "cuda":
            peers["ahernet, launch by launch"] = training.eager
        yield Line(
            "training",
            f"B={videos} D={training.config.model.feature_dimension} bf16",
            (training.batch,),
            training.call,
            reference=training.peer,
            # Features resampled in another order of sums are rounded to other bf16 values.
            tolerance=2e-2,
            uncapturable=peers,
            cost=training.cost,
            capture=False,
        )
