from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from training_worlds import ground_truth_of

from ahernet.training.batches import Batch
from ahernet.training.segment_batches import choose_foregrounds, cut_foregrounds, cut_surroundings

GRID = 16


def _batch(videos):
    """Videos of (rows, [(start, end), ...]) in [0, 1]; a feature row holds its video and its place there."""
    rows = [torch.tensor([(b, i) for i in range(length)]).float() for b, (length, _) in enumerate(videos)]
    instances = [
        [(*segment, 10 * b + g) for g, segment in enumerate(segments)] for b, (_, segments) in enumerate(videos)
    ]
    return Batch(
        tuple(f"video{b}" for b in range(len(videos))),
        torch.cat(rows),
        torch.tensor([0, *np.cumsum([len(part) for part in rows]).tolist()]),
        ground_truth_of(*instances),
    )


def _parts(rows, offsets):
    """Split ragged rows; return (video, [places]) of each part."""
    assert offsets[0] == 0
    assert offsets[-1] == len(rows)
    parts = [rows[begin:end] for begin, end in pairwise(offsets)]
    assert all(len(part) for part in parts)
    assert all(len(set(part[:, 0].tolist())) == 1 for part in parts)
    return [(int(part[0, 0]), part[:, 1].int().tolist()) for part in parts]


def _exact(batch):
    """Ground truth of each video as exact numbers."""
    offsets = batch.ground_truth.offsets.tolist()
    segments = [tuple(Fraction(x) for x in pair) for pair in batch.ground_truth.segments.tolist()]
    return [segments[begin:end] for begin, end in pairwise(offsets)]


def _rows_inside(start, end, length):
    inside = [i for i in range(length) if start <= Fraction(2 * i + 1, 2 * length) < end]
    return inside or [min(int((start + end) / 2 * length), length - 1)]


def _overlap(a, b):
    return min(a[1], b[1]) > max(a[0], b[0])


def _background_next_to(segment, others):
    """The longest stretch that ends, and the longest that begins, where the segment does, without any other."""
    before = [start for start in (Fraction(0), *(end for _, end in others)) if start <= segment[0]]
    after = [end for end in (Fraction(1), *(start for start, _ in others)) if end >= segment[1]]
    left = [(start, segment[0]) for start in sorted(before)]
    right = [(segment[1], end) for end in sorted(after, reverse=True)]
    free = [[span for span in spans if not any(_overlap(span, other) for other in others)] for spans in (left, right)]
    return [spans[0] if spans else (edge, edge) for spans, edge in zip(free, segment, strict=True)]


@st.composite
def videos(draw, alike=True):
    """A few videos; ends on a grid, so that segments touch, overlap, contain one another and reach the ends.

    With `alike` segments of a video may also start or end together.
    """
    made = []
    for _ in range(draw(st.integers(1, 4))):
        spans = st.tuples(st.integers(0, GRID - 1), st.integers(1, GRID)).filter(lambda span: span[0] < span[1])
        different = None if alike else (lambda span: span[0], lambda span: span[1])
        segments = draw(st.lists(spans, min_size=1, max_size=5, unique_by=different))
        made.append((draw(st.integers(1, 40)), [(start / GRID, end / GRID) for start, end in segments]))
    return made


@st.composite
def any_videos(draw):
    """A few videos with segments anywhere, short ones too; all numbers of rows are exact."""
    places = st.integers(0, 4096).map(lambda number: number / 4096)
    spans = st.tuples(places, places).map(sorted).filter(lambda span: span[1] > span[0])
    return draw(
        st.lists(st.tuples(st.integers(1, 60), st.lists(spans, min_size=1, max_size=4)), min_size=1, max_size=4)
    )


# --- which ground truth ----------------------------------------------------------------------------------------


def test_every_annotation_of_every_video_has_its_turn_and_about_as_often():
    batch = _batch([(9, [(0.1, 0.2)]), (9, [(0.1, 0.2), (0.4, 0.5), (0.6, 0.9)]), (9, [(0.0, 0.5), (0.5, 1.0)])])
    chosen = np.stack([choose_foregrounds(batch, 5, k) for k in range(600)])
    counts = [np.bincount(column, minlength=6) for column in chosen.T]
    assert [np.nonzero(count)[0].tolist() for count in counts] == [[0], [1, 2, 3], [4, 5]]
    assert min(counts[1][1:4]) > 150
    assert min(counts[2][4:]) > 240


def test_choices_of_the_videos_of_a_batch_are_independent():
    batch = _batch([(9, [(0.0, 0.5), (0.5, 1.0)])] * 2)
    chosen = {tuple(choose_foregrounds(batch, 0, k) - [0, 2]) for k in range(60)}
    assert chosen == {(0, 0), (0, 1), (1, 0), (1, 1)}


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_the_choice_depends_on_seed_and_iteration_only(seed, iteration):
    batch = _batch([(9, [(k / 20, (k + 1) / 20) for k in range(20)])] * 6)
    chosen = choose_foregrounds(batch, seed, iteration)
    np.random.default_rng(0).random(3)
    np.testing.assert_array_equal(choose_foregrounds(batch, seed, iteration), chosen)
    assert (choose_foregrounds(batch, seed, iteration + 1) != chosen).any()
    assert (choose_foregrounds(batch, seed ^ 1, iteration) != chosen).any()


# --- foreground segments ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.one_of(videos(), any_videos()), st.integers(0, 99))
def test_a_foreground_segment_has_the_rows_whose_centre_lies_inside(made, iteration):
    batch = _batch(made)
    chosen = choose_foregrounds(batch, 0, iteration)
    cut = cut_foregrounds(batch, chosen)
    begin = batch.ground_truth.offsets.tolist()
    assert cut.video_ids == batch.video_ids
    for b, (video, places) in enumerate(_parts(cut.rows, cut.offsets)):
        number = int(chosen[b]) - begin[b]
        assert 0 <= number < begin[b + 1] - begin[b]
        assert video == b
        assert places == _rows_inside(*_exact(batch)[b][number], made[b][0])
        assert cut.labels[b] == 10 * b + number


def test_a_segment_shorter_than_a_row_has_the_row_that_its_middle_lies_in():
    batch = _batch([(10, [(0.31, 0.33)]), (10, [(0.9999, 1.0)]), (1, [(0.0, 0.1)])])
    cut = cut_foregrounds(batch, np.array([0, 1, 2]))
    assert _parts(cut.rows, cut.offsets) == [(0, [3]), (1, [9]), (2, [0])]


def test_segments_keep_the_precision_of_the_features():
    batch = _batch([(10, [(0.3, 0.5)])])
    cut = cut_foregrounds(batch._replace(rows=batch.rows.half()), np.array([0]))
    assert cut.rows.dtype == torch.float16


def test_the_batch_stays_as_it_is():
    batch = _batch([(10, [(0.3, 0.5), (0.6, 0.8)])])
    copies = [batch.rows.clone(), *(tensor.clone() for tensor in batch.ground_truth)]
    cut_foregrounds(batch, np.array([1])).rows.zero_()
    cut_surroundings(batch, np.array([1])).before.zero_()
    for tensor, copy in zip([batch.rows, *batch.ground_truth], copies, strict=True):
        assert torch.equal(tensor, copy)


# --- their surroundings ----------------------------------------------------------------------------------------


def _cut_surroundings(made, iteration):
    """Return the batch, the number of the chosen ground truth of each video, and both sides with their flags."""
    batch = _batch(made)
    chosen = choose_foregrounds(batch, 0, iteration)
    around = cut_surroundings(batch, chosen)
    sides = (
        zip(_parts(around.before, around.before_offsets), around.has_before.tolist(), strict=True),
        zip(_parts(around.after, around.after_offsets), around.has_after.tolist(), strict=True),
    )
    return batch, chosen - batch.ground_truth.offsets.numpy()[:-1], [list(side) for side in sides]


@settings(deadline=None)
@given(st.one_of(videos(), any_videos()), st.integers(0, 99))
def test_surroundings_are_background_next_to_the_segment(made, iteration):
    batch, numbers, sides = _cut_surroundings(made, iteration)
    for b, (length, _) in enumerate(made):
        segments = _exact(batch)[b]
        for side, backwards in zip(sides, (True, False), strict=True):
            (video, places), has = side[b]
            assert video == b
            if not has:
                continue
            centres = [Fraction(2 * i + 1, 2 * length) for i in places]
            assert not any(start <= centre < end for centre in centres for start, end in segments)
            assert places == list(range(places[0], places[-1] + 1))
            # No row lies between them and the segment.
            edge = segments[numbers[b]][0] if backwards else segments[numbers[b]][1]
            gap = edge - centres[-1] if backwards else centres[0] - edge
            assert 0 <= gap <= Fraction(1, length)


def _assert_surroundings_reach_as_far_as_background_does(made, iteration):
    batch, numbers, sides = _cut_surroundings(made, iteration)
    for b, (length, _) in enumerate(made):
        segments = _exact(batch)[b]
        others = [segment for g, segment in enumerate(segments) if g != numbers[b]]
        for side, span in zip(sides, _background_next_to(segments[numbers[b]], others), strict=True):
            (_, places), has = side[b]
            assert has == ((span[1] - span[0]) * length >= 1)
            if has:
                assert places == _rows_inside(*span, length)


@settings(deadline=None)
@given(st.one_of(videos(alike=False), any_videos()), st.integers(0, 99))
def test_surroundings_reach_as_far_as_background_does(made, iteration):
    for _, segments in made:
        for column in zip(*segments, strict=True):
            assume(len(set(column)) == len(column))
    _assert_surroundings_reach_as_far_as_background_does(made, iteration)


@settings(deadline=None)
@given(videos(), st.integers(0, 99))
@example([(20, [(0.25, 0.5), (0.25, 0.5)])], 0)
def test_segments_that_start_or_end_together_have_the_background_around_both(made, iteration):
    """Instances are annotated twice where a class contains another, such as dives and cliff dives."""
    _assert_surroundings_reach_as_far_as_background_does(made, iteration)


@pytest.mark.parametrize(
    ("segments", "before", "after"),
    [
        ([(0.4, 0.6)], [0, 1, 2, 3], [6, 7, 8, 9]),
        ([(0.0, 0.6)], None, [6, 7, 8, 9]),
        ([(0.4, 1.0)], [0, 1, 2, 3], None),
        ([(0.0, 1.0)], None, None),
        ([(0.4, 0.6), (0.1, 0.2), (0.8, 0.9)], [2, 3], [6, 7]),
        ([(0.4, 0.6), (0.2, 0.4), (0.6, 0.7)], None, None),  # touching
        ([(0.4, 0.6), (0.2, 0.5), (0.5, 0.7)], None, None),  # overlapping
        ([(0.4, 0.6), (0.1, 0.9)], None, None),  # inside another
        ([(0.4, 0.6), (0.45, 0.55)], [0, 1, 2, 3], [6, 7, 8, 9]),  # around another
        ([(0.4, 0.6), (0.05, 0.35)], None, [6, 7, 8, 9]),  # less than a row between
    ],
)
def test_surroundings_of_the_first_segment(segments, before, after):
    around = cut_surroundings(_batch([(10, segments)]), np.array([0]))
    for expected, rows, offsets, has in ((before, *around[:3]), (after, *around[3:])):
        assert has.tolist() == [expected is not None]
        assert len(rows) == offsets[-1] >= 1
        if expected is not None:
            assert rows[:, 1].int().tolist() == expected


def test_a_video_does_not_bound_the_surroundings_of_another():
    around = cut_surroundings(_batch([(10, [(0.4, 0.6)]), (10, [(0.2, 0.3), (0.7, 0.8)])]), np.array([0, 2]))
    assert _parts(around.before, around.before_offsets) == [(0, [0, 1, 2, 3]), (1, [3, 4, 5, 6])]
    assert _parts(around.after, around.after_offsets) == [(0, [6, 7, 8, 9]), (1, [8, 9])]


def test_moving_to_the_device_that_they_are_on_keeps_the_values():
    batch = _batch([(10, [(0.4, 0.6)])])
    for made in (cut_foregrounds(batch, np.array([0])), cut_surroundings(batch, np.array([0]))):
        moved = made.to(torch.device("cpu"))
        assert type(moved) is type(made)
        for a, b in zip(moved, made, strict=True):
            assert torch.equal(a, b) if torch.is_tensor(a) else a == b
