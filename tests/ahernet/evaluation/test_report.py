import json

import numpy as np
import pytest

from ahernet.errors import UserError
from ahernet.evaluation.average_precision import TIOU_THRESHOLDS, AveragePrecision
from ahernet.evaluation.average_recall import AverageRecall
from ahernet.evaluation.report import coverage, format_report, report_dictionary


def result_of(
    averages: dict[str, float],
    thresholds: np.ndarray = TIOU_THRESHOLDS,
    missing: tuple[str, ...] = (),
    unknown: tuple[str, ...] = (),
) -> AveragePrecision:
    return AveragePrecision(
        classes=tuple(averages),
        thresholds=thresholds,
        per_class=np.repeat(np.array(list(averages.values()))[:, None], len(thresholds), axis=1),
        instances=np.arange(1, len(averages) + 1) * 1000,
        detections=np.arange(1, len(averages) + 1),
        scored=("s", "t"),
        missing=missing,
        unknown=unknown,
    )


def recall_of(max_proposals: int = 100) -> AverageRecall:
    """At n proposals per video the average recall is 0.004 * n."""
    proposals = np.arange(1, 101) * max_proposals / 100
    return AverageRecall(
        thresholds=np.array([0.5, 0.9]),
        proposals_per_video=proposals,
        recall=proposals * np.array([[0.006], [0.002]]),
        scored=("s", "t"),
        missing=(),
        unknown=(),
    )


def test_coverage_says_what_was_scored_what_is_missing_and_what_is_unknown() -> None:
    result = result_of({"a": 0.5}, missing=("m1", "m2", "m3", "m4"), unknown=("u",))
    assert coverage(result) == (
        "scored 2 of 6 videos; 4 not in the detections, their instances count as not found "
        "(m1, m2, m3, ...); 1 not annotated, their detections count as false (u)"
    )


def test_coverage_of_complete_detections_is_short() -> None:
    assert coverage(result_of({"a": 0.5})) == "scored 2 of 2 videos"


def test_table_lists_classes_best_first_and_then_the_means() -> None:
    lines = format_report(result_of({"low": 0.25, "high": 0.75, "also high": 0.75})).splitlines()
    assert lines[0] == "scored 2 of 2 videos"
    assert lines[2].split() == [
        *("class", "instances", "detections", "AP@0.50", "AP@0.75", "AP@0.95", "average"),
    ]
    assert [line.split("  ")[0] for line in lines[4:7]] == ["also high", "high", "low"]
    assert lines[4].split()[2:] == ["3,000", "3", "75.00", "75.00", "75.00", "75.00"]
    assert lines[-1].split() == ["mean", "of", "3", "classes", "6,000", "6", *["58.33"] * 4]
    assert len({len(line) for line in lines[2:]}) == 1


def test_groups_get_their_own_means_and_say_how_many_of_their_classes_occur() -> None:
    text = format_report(result_of({"a": 0.2, "b": 0.6}), {"base": ["a"], "novel": ["b", "absent"]})
    *_, all_classes, base, novel = text.splitlines()
    assert all_classes.startswith("mean of 2 classes ")
    assert base.startswith("mean of 1 base classes ")
    assert base.endswith(" 20.00")
    assert novel.startswith("mean of 1 of 2 novel classes ")
    assert novel.endswith(" 60.00")
    with pytest.raises(UserError, match="'absent'"):
        format_report(result_of({"a": 0.2}), {"novel": ["absent"]})


def test_other_thresholds_are_named_in_the_header() -> None:
    header = format_report(result_of({"a": 0.5}, np.array([0.1, 0.2, 0.3, 0.4, 0.6]))).splitlines()[2]
    assert [word for word in header.split() if "@" in word] == ["AP@0.10", "AP@0.30", "AP@0.60"]
    header = format_report(result_of({"a": 0.5}, np.array([0.5]))).splitlines()[2]
    assert [word for word in header.split() if "@" in word] == ["AP@0.50"]


def test_class_names_cannot_disturb_the_terminal_or_the_columns() -> None:
    text = format_report(result_of({"\x1b[31mred\n": 0.5, "x" * 90: 0.4}))
    assert "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == 8
    assert "x" * 37 + "...  " in lines[5]


def test_dictionary_is_plain_json_with_fractions() -> None:
    result = result_of({"a": 0.2, "b": 0.6}, missing=("m",), unknown=("u",))
    content = json.loads(json.dumps(report_dictionary(result, {"novel": ["b"]})))
    assert content["tiou_thresholds"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert content["means"]["all"] == {
        "classes": 2,
        "mean_average_precision": [0.4] * 10,
        "average": 0.4,
    }
    assert content["means"]["novel"]["average"] == 0.6
    assert content["classes"]["b"] == {
        "instances": 2000,
        "detections": 2,
        "average_precision": [0.6] * 10,
        "average": 0.6,
    }
    assert content["videos"] == {"scored": 2, "missing": ["m"], "unknown": ["u"]}


def test_recall_adds_one_last_line_in_percent() -> None:
    groups = {"novel": ["b"]}
    without = format_report(result_of({"a": 0.2, "b": 0.6}), groups)
    text = format_report(result_of({"a": 0.2, "b": 0.6}), groups, recall_of())
    # The area from 1 to 100 below a line through 0: (100 ** 2 - 1 ** 2) / 2 * 0.004 / 100.
    proposals = "AR@1 0.40, AR@10 4.00, AR@100 40.00, AUC 20.00 %"
    assert text == f"{without}\nproposals: {proposals}"
    of_groups = format_report(result_of({"a": 0.2, "b": 0.6}), groups, recall_of(), {"novel": recall_of()})
    assert of_groups == f"{text}\nof novel: {proposals}"


@pytest.mark.parametrize(("max_proposals", "shown"), [(10, ["1", "10"]), (50, ["1", "10"]), (200, ["10", "100"])])
def test_recall_is_shown_at_points_of_the_curve_alone(max_proposals: int, shown: list[str]) -> None:
    line = format_report(result_of({"a": 0.5}), recall=recall_of(max_proposals)).splitlines()[-1]
    assert [word.removeprefix("AR@") for word in line.split() if word.startswith("AR@")] == shown
    content = report_dictionary(result_of({"a": 0.5}), recall=recall_of(max_proposals))
    assert list(content["proposals"]["average_recall"]) == shown


def test_dictionary_has_recall_as_fractions_where_it_was_computed() -> None:
    content = json.loads(json.dumps(report_dictionary(result_of({"a": 0.2}), recall=recall_of())))
    assert content["proposals"] == {
        "average_recall": {"1": 0.004, "10": 0.04, "100": 0.4},
        "area": pytest.approx(0.19998),
    }
    assert "proposals" not in report_dictionary(result_of({"a": 0.2}))
