import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_worlds import BASE, data_of, small_config

from ahernet.config import RUNS, preset, with_run
from ahernet.training.iteration_batches import draw_placement, first_main_iteration, phase_of, read_iteration
from ahernet.training.moment_set import MomentLengths
from ahernet.training.segment_batches import choose_foregrounds, cut_foregrounds, cut_surroundings

# What the iterations of each run and phase read: untrimmed, foregrounds, surroundings, moments, placement.
NEEDS = {
    ("aher0", "main"): {"moments"},
    ("aher-", "main"): {"untrimmed", "foregrounds", "moments"},
    ("aherM", "main"): {"moments"},
    ("aherA-", "main"): {"untrimmed", "foregrounds", "moments", "placement"},
    ("aherR", "main"): {"untrimmed", "foregrounds", "surroundings", "moments", "placement"},
    ("aherB", "main"): {"untrimmed", "foregrounds", "surroundings", "moments", "placement"},
    ("aher", "main"): {"untrimmed", "foregrounds", "moments", "placement"},
    ("aher*", "main"): {"untrimmed", "foregrounds"},
    ("aher-", "localizer"): {"untrimmed"},
    ("aher", "localizer"): {"untrimmed"},
    ("aher", "generators"): {"untrimmed", "foregrounds", "surroundings"},
    ("aherA-", "generators"): {"untrimmed", "foregrounds", "surroundings"},
}
BEFORE = {"pretrain_iterations": 2, "context_iterations": 3}


def _config(run, phase="main", **changes):
    """Settings of a run as in the paper, and the number of an iteration in a phase of it."""
    config = small_config(run, "paper", **{**changes, "method": {**BEFORE, **changes.get("method", {})}})
    phases = [phase_of(config.method, k) for k in range(6)]
    return config, len(phases) - 1 - phases[::-1].index(phase)


def _read(world, config, iteration):
    data = data_of(world, config)
    return read_iteration(data.untrimmed, data.moments, config, iteration)


def _tensors(value):
    """All tensors in nested tuples, in order."""
    if torch.is_tensor(value):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple) else []


def _same(one, other):
    """Whether the tensors of both are equal, in number, order, shape and value."""
    return all(torch.equal(a, b) for a, b in zip(_tensors(one), _tensors(other), strict=True))


# --- phases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "phases"),
    [
        ("aher", "llgggm"),
        ("aherA-", "llgggm"),
        ("aher-", "llmmmm"),  # has no generators
        ("aherB", "llmmmm"),
        ("aher*", "mmmmmm"),  # is nothing but pre-training
        ("aher0", "mmmmmm"),  # has no untrimmed videos
        ("aherM", "mmmmmm"),
    ],
)
def test_phases_follow_one_another_and_are_left_out_where_a_run_has_no_use_for_them(run, phases):
    method = small_config(run, method=BEFORE).method
    assert "".join(phase_of(method, k)[0] for k in range(6)) == phases
    assert first_main_iteration(method) == phases.index("m")


def test_a_run_may_begin_at_once():
    method = small_config("aher", method={"pretrain_iterations": 0, "context_iterations": 0}).method
    assert phase_of(method, 0) == "main"
    assert first_main_iteration(method) == 0


# --- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "phase"), NEEDS)
def test_every_phase_of_every_run_reads_what_it_needs_and_no_more(world, run, phase):
    config, iteration = _config(run, phase)
    batch = _read(world, config, iteration)
    assert {name for name, value in batch._asdict().items() if value is not None} == NEEDS[run, phase]


def test_the_table_of_needs_has_every_run():
    assert {run for run, phase in NEEDS if phase == "main"} == set(RUNS)


@pytest.mark.parametrize("changes", [{"method": {"real_residual": True}}, {"loss": {"context": 1.0}}])
def test_settings_that_look_at_real_context_read_that_of_the_foregrounds(world, changes):
    config, iteration = _config("aher", **changes)
    batch = _read(world, config, iteration)
    chosen = choose_foregrounds(batch.untrimmed, config.training.seed, iteration)
    assert _same(cut_surroundings(batch.untrimmed, chosen), batch.surroundings)
    config, iteration = _config("aher-", **changes)  # has no context
    assert _read(world, config, iteration).surroundings is None


@pytest.mark.parametrize("phase", ["localizer", "generators", "main"])
def test_a_batch_depends_on_seed_and_iteration_only(world, phase):
    config, iteration = _config("aher", phase)
    batch = _read(world, config, iteration)
    torch.manual_seed(99)
    _read(world, config, iteration + 1)
    assert _same(_read(world, config, iteration), batch)
    other, _ = _config("aher", phase, training={"seed": 1})
    assert _read(world, other, iteration).untrimmed.video_ids != batch.untrimmed.video_ids


def test_all_parts_have_as_many_members_as_a_batch(world):
    config, _ = _config("aher", training={"batch_size": 7})  # more than there are videos or moments
    batch = _read(world, config, 5)
    assert len(batch.untrimmed.video_ids) == len(batch.foregrounds.video_ids) == len(batch.moments.video_ids) == 7
    assert len(batch.placement.first) == len(batch.placement.length) == 7


def test_foregrounds_are_those_of_the_videos_of_the_batch(world):
    config, iteration = _config("aher")
    batch = _read(world, config, iteration)
    chosen = choose_foregrounds(batch.untrimmed, config.training.seed, iteration)
    assert _same(cut_foregrounds(batch.untrimmed, chosen), batch.foregrounds)
    assert batch.foregrounds.video_ids == batch.untrimmed.video_ids


def test_context_is_cut_around_the_foregrounds_that_it_is_generated_from(world):
    config, _ = _config("aherA-")
    for iteration in range(2, 5):
        batch = _read(world, config, iteration)
        rows = {tuple(row) for row in batch.untrimmed.rows.tolist()}
        around = batch.surroundings
        for b in range(4):
            begin, end = batch.untrimmed.offsets[b : b + 2].tolist()
            video = batch.untrimmed.rows[begin:end]
            first, last = batch.foregrounds.offsets[b : b + 2].tolist()
            place = int((video == batch.foregrounds.rows[first]).all(dim=1).nonzero())
            if around.has_before[b]:
                row = around.before[around.before_offsets[b + 1] - 1]
                assert torch.equal(row, video[place - 1])
            if around.has_after[b]:
                row = around.after[around.after_offsets[b]]
                assert torch.equal(row, video[place + last - first])
        assert {tuple(row) for row in around.before.tolist()} <= rows


def test_over_the_iterations_every_annotation_of_every_video_is_a_foreground(world):
    config = small_config("aher")
    data = data_of(world, config)
    seen = set()
    for iteration in range(30):
        batch = read_iteration(data.untrimmed, data.moments, config, iteration)
        seen |= set(zip(batch.foregrounds.video_ids, batch.foregrounds.labels.tolist(), strict=True))
    # No video of this world has two instances of one class.
    annotated = {
        (name, data.untrimmed.classes.index(label))
        for name, video in world.annotations.videos.items()
        for label in video.labels
        if label in data.untrimmed.classes
    }
    assert seen == annotated


def test_the_paper_pretrains_the_generators_of_the_run_without_adversary_only():
    rows = {name: with_run(preset("paper"), name).method for name in ("aher", "aherA-")}
    assert first_main_iteration(rows["aher"]) == rows["aher"].pretrain_iterations
    assert first_main_iteration(rows["aherA-"]) == rows["aherA-"].pretrain_iterations + 5_000
    tuned = with_run(preset("tuned"), "aher").method
    assert first_main_iteration(tuned) == tuned.pretrain_iterations + tuned.context_iterations


def test_moments_and_videos_go_through_their_epochs_apart(world):
    config = small_config("aher", "paper", method={"context_iterations": 0})
    data = data_of(world, config)
    batches = [read_iteration(data.untrimmed, data.moments, config, k) for k in range(15)]
    for part, count in (("untrimmed", 6), ("moments", 5)):
        order = [name for batch in batches for name in getattr(batch, part).video_ids]
        assert len(order) == 60
        epochs = [order[k : k + count] for k in range(0, 60, count)]
        assert all(len(set(epoch)) == count for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 1


def test_moving_to_the_device_that_it_is_on_keeps_the_values(world):
    for run, phase in NEEDS:
        batch = _read(world, *_config(run, phase))
        moved = batch.to(torch.device("cpu"))
        assert type(moved) is type(batch)
        assert [type(part) for part in moved] == [type(part) for part in batch]
        assert _same(moved, batch)


# --- placement --------------------------------------------------------------------------------------------------


def _rows(rows):
    """Moments of which only the rows are known."""
    rows = np.asarray(rows)
    return MomentLengths(rows, np.full(rows.shape, np.nan))


def _one_row(count):
    """Moments whose length does not matter."""
    return _rows(np.ones((count, 1), np.int64))


def _placements(world, iterations=200, steps=128, batch_size=8, **method):
    config, _ = _config(
        "aher", method={"shares": "range", **method}, model={"steps": steps}, training={"batch_size": batch_size}
    )
    videos = data_of(world, config).untrimmed
    drawn = [draw_placement(config, videos, _one_row(batch_size), k) for k in range(iterations)]
    return torch.cat([x.first for x in drawn])[:, 0].numpy(), torch.cat([x.length for x in drawn])[:, 0].numpy()


@settings(deadline=None)
@given(
    shares=st.tuples(st.floats(1e-3, 1), st.floats(1e-3, 1)).map(sorted),
    steps=st.integers(8, 600),
    seed=st.integers(0, 10**9),
)
def test_moments_keep_to_their_shares_and_inside_the_video(world, shares, steps, seed):
    low, high = shares
    config = small_config(
        "aher",
        method={"shares": "range", "minimum_share": low, "maximum_share": high},
        model={"steps": steps},
        training={"seed": seed, "batch_size": 32},
    )
    videos = data_of(world, config).untrimmed
    first, length = draw_placement(config, videos, _one_row(32), seed % 1000)
    assert first.dtype == length.dtype == torch.int64
    assert first.shape == length.shape == (32, 1)
    assert length.min() >= max(1, math.floor(low * steps))
    assert length.max() <= math.ceil(high * steps)
    assert first.min() >= 0
    assert (first + length).max() <= steps


def test_shares_of_a_range_cover_it_log_uniformly(world):
    _, length = _placements(world, iterations=400, minimum_share=0.1, maximum_share=0.9)
    shares = length / 128
    assert shares.min() < 0.11
    assert shares.max() > 0.88
    halves = np.log(shares) < (math.log(0.1) + math.log(0.9)) / 2
    assert 0.45 < halves.mean() < 0.55


def test_shares_like_untrimmed_videos_are_those_of_their_base_ground_truths(world):
    _, length = _placements(world, iterations=200, shares="untrimmed")
    expected = sorted(
        round(float(128 * (end - start) / video.duration))
        for video in world.annotations.videos.values()
        for (start, end), label in zip(video.segments, video.labels, strict=True)
        if label in BASE
    )
    assert sorted(set(length)) == sorted(set(expected))
    for share in set(expected):
        assert (length == share).mean() == pytest.approx(expected.count(share) / len(expected), abs=0.05)


def test_shares_by_durations_are_those_that_a_moment_would_have_of_untrimmed_videos(world):
    config, _ = _config("aher", method={"shares": "durations"}, model={"steps": 128})
    videos = data_of(world, config).untrimmed
    rows = np.array([[1], [3], [10**6]])
    drawn = [draw_placement(config, videos, _rows(rows), k).length[:, 0].tolist() for k in range(200)]
    # A video is drawn as often as it has ground truths.
    lengths = world.archive.lengths[videos.positions][videos.owners]
    for row, found in zip(rows[:, 0], zip(*drawn, strict=True), strict=True):
        expected = np.clip(np.rint(128 * row / lengths), 1, 128).astype(int).tolist()
        assert set(found) == set(expected)
        for length in set(expected):
            assert found.count(length) / 200 == pytest.approx(expected.count(length) / len(expected), abs=0.1)


def test_shares_by_durations_are_of_seconds_where_these_are_known(world):
    config, _ = _config("aher", method={"shares": "durations"}, model={"steps": 1000})
    videos = data_of(world, config).untrimmed
    rows = np.array([[10**6], [10**6], [3]])  # another rate than that of the videos
    moments = MomentLengths(rows, np.array([[2.5], [np.nan], [0.0]]))
    drawn = [draw_placement(config, videos, moments, k).length[:, 0].tolist() for k in range(100)]
    assert {row[0] for row in drawn} == {round(1000 * 2.5 / duration) for duration in videos.durations[videos.owners]}
    assert {row[1] for row in drawn} == {1000}
    assert {row[2] for row in drawn} == {round(1000 * 3 / length) for length in videos.row_lengths[videos.owners]}


def test_shares_of_a_range_do_not_depend_on_the_ground_truth_that_a_video_is_modelled_on(world):
    method = {"shares": "range", "minimum_share": 0.01, "maximum_share": 0.09, "neighbours": 1}
    config, _ = _config("aher", method=method, model={"steps": 1000})
    videos, moments = data_of(world, config).untrimmed, _rows(np.ones((64, 2), np.int64))
    drawn = [draw_placement(config, videos, moments, k) for k in range(40)]
    first, length = (torch.cat(values).numpy() for values in zip(*drawn, strict=True))
    together = length[:, 1] > 0
    gap = (first[:, 1] - first[:, 0] - length[:, 0])[together]  # says which ground truth it was
    short = length[together] < 30  # 0.03 is the middle of the range
    gaps, counts = np.unique(gap, return_counts=True)
    assert len(gaps) > 1
    assert counts.min() > 100
    for one in gaps:
        assert (short[gap == one].mean(axis=0) > 0.35).all()
        assert (short[gap == one].mean(axis=0) < 0.65).all()


def _in_rows(world, shares="untrimmed", iterations=100, neighbours=1, arrangement="untrimmed"):
    """First steps and lengths of the moments of videos with neighbours, and the untrimmed videos."""
    method = {"shares": shares, "neighbours": neighbours, "arrangement": arrangement}
    config, _ = _config("aher", method=method, model={"steps": 512})
    videos = data_of(world, config).untrimmed
    rows = np.array([[2, 3, 1, 2], [9, 1, 2, 3]])[:, : 1 + neighbours]
    drawn = [draw_placement(config, videos, _rows(rows), k) for k in range(iterations)]
    return torch.cat([x.first for x in drawn]).numpy(), torch.cat([x.length for x in drawn]).numpy(), videos


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("shares", ["range", "untrimmed", "durations"])
@pytest.mark.parametrize("arrangement", ["untrimmed", "random"])
def test_neighbours_follow_one_another_inside_their_video(world, shares, neighbours, arrangement):
    first, length, _ = _in_rows(world, shares, neighbours=neighbours, arrangement=arrangement)
    assert (length[:, 0] >= 1).all()
    assert (length >= 0).all()
    assert (first[:, 0] >= 0).all()
    assert (first[:, :-1] + length[:, :-1] <= first[:, 1:]).all()
    assert (first[:, -1] + length[:, -1] <= 512).all()


@pytest.mark.parametrize("arrangement", ["untrimmed", "random"])
def test_a_row_of_neighbours_has_no_gap(world, arrangement):
    first, length, _ = _in_rows(world, neighbours=3, arrangement=arrangement)
    shown = length > 0
    assert (shown[:, :-1] >= shown[:, 1:]).all()  # what follows nothing is nothing
    np.testing.assert_array_equal(first[:, 1:][~shown[:, 1:]], (first + length)[:, :-1][~shown[:, 1:]])


def test_as_many_neighbours_follow_as_ground_truths_do_in_untrimmed_videos(world):
    _, length, videos = _in_rows(world, neighbours=3, iterations=300)
    expected = []
    for start, end in zip(videos.offsets[:-1], videos.offsets[1:], strict=True):
        segments = sorted(videos.segments[start:end].tolist())
        apart = [later[0] >= earlier[1] for earlier, later in itertools.pairwise(segments)]
        rows = [list(itertools.takewhile(bool, apart[k : k + 3])) for k in range(len(segments))]
        expected += [1 + len(row) for row in rows]
    found = (length > 0).sum(axis=1)
    assert set(found) == set(expected)
    assert found.mean() == pytest.approx(np.mean(expected), abs=0.1)


def test_random_rows_are_as_long_as_any_other_and_at_distances_of_ground_truths(world):
    first, length, videos = _in_rows(world, "durations", iterations=600, neighbours=3, arrangement="random")
    shown = length > 0
    assert np.bincount(shown.sum(axis=1), minlength=5)[1:] / len(shown) == pytest.approx([0.25] * 4, abs=0.05)
    # Any distance in seconds, in a video as long as any other.
    seconds = videos.segments * videos.durations[videos.owners, None]
    distances = [
        start - end
        for video in range(len(videos))
        for (_, end), (start, _) in itertools.pairwise(sorted(seconds[videos.owners == video].tolist()))
        if start >= end
    ]
    np.testing.assert_allclose(np.sort(videos.distances), np.sort(distances), rtol=1e-5)
    expected = {round(512 * distance / duration) for distance in distances for duration in videos.durations}
    gap = (first[:, 1:] - first[:, :-1] - length[:, :-1])[shown[:, 1:]]
    assert all(min(abs(one - other) for other in expected) <= 1 for one in set(gap.tolist()))
    assert len(set(gap.tolist())) > len(expected) / 3


def test_nothing_follows_at_random_where_no_video_shows_two_ground_truths(world):
    method = {"neighbours": 2, "arrangement": "random", "shares": "untrimmed"}
    config, _ = _config("aher", method=method)
    videos = data_of(world, config).untrimmed
    alone = replace(
        videos,
        segments=videos.segments[videos.offsets[:-1]],
        labels=videos.labels[videos.offsets[:-1]],
        offsets=np.arange(len(videos) + 1),
    )
    _, length = draw_placement(config, alone, _rows(np.ones((64, 3), np.int64)), 0)
    assert (length[:, 0] > 0).all()
    assert not length[:, 1:].any()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_segments_that_follow_are_the_later_ones_of_the_same_video(world, count):
    config, _ = _config("aher")
    videos = data_of(world, config).untrimmed
    following = videos.following(np.arange(len(videos.segments)), count)
    assert following.shape == (len(videos.segments), count)
    for segment, found in enumerate(following.tolist()):
        own = np.flatnonzero(videos.owners == videos.owners[segment])
        ordered = own[np.argsort(videos.segments[own, 0], kind="stable")].tolist()
        later = ordered[ordered.index(segment) + 1 :][:count]
        assert found == later + [-1] * (count - len(later))


def test_neighbours_lie_as_ground_truths_that_follow_one_another_in_untrimmed_videos(world):
    first, length, videos = _in_rows(world)
    together = length[:, 1] > 0
    found = set(zip(length[:, 0], first[:, 1] - first[:, 0] - length[:, 0], length[:, 1], strict=True))
    expected, alone = set(), 0
    for start, end in zip(videos.offsets[:-1], videos.offsets[1:], strict=True):
        segments = sorted(videos.segments[start:end].tolist())
        alone += 1
        for (a, b), (c, d) in itertools.pairwise(segments):
            if c >= b:
                expected.add(tuple(round(512 * x) for x in (b - a, c - b, d - c)))
            else:
                alone += 1
    close = [any(max(abs(x - y) for x, y in zip(one, other, strict=True)) <= 1 for other in expected) for one in found]
    assert sum(close) >= sum(1 for one in found if one[2])
    assert (~together).mean() == pytest.approx(alone / len(videos.segments), abs=0.1)
    assert 0 < together.mean() < 1


@pytest.mark.parametrize("neighbours", [1, 2, 5])
def test_neighbours_are_other_moments_of_the_batch(world, neighbours):
    config, iteration = _config("aher", method={"neighbours": neighbours})
    batch = _read(world, config, iteration)
    ids = batch.moments.video_ids
    assert batch.neighbours.video_ids == tuple(ids[place % len(ids)] for place in range(neighbours))
    assert batch.placement.first.shape == batch.placement.length.shape == (len(ids), 1 + neighbours)
    without, _ = _config("aher")
    assert _same(_read(world, without, iteration).moments, batch.moments)


def test_neighbours_change_nothing_of_a_video_that_has_none(world):
    config, _ = _config("aher", method={"shares": "untrimmed"}, model={"steps": 512})
    videos = data_of(world, config).untrimmed
    alone = [draw_placement(config, videos, _rows([[2], [9]]), k).length for k in range(100)]
    _, length, _ = _in_rows(world)
    np.testing.assert_array_equal(torch.cat(alone)[:, 0].numpy(), length[:, 0])


@pytest.mark.parametrize("shares", ["range", "untrimmed"])
def test_the_shortest_moment_has_a_step(world, shares):
    first, length = _placements(world, steps=8, shares=shares, minimum_share=1e-3, maximum_share=2e-3)
    assert length.min() >= 1
    assert (first + length).max() <= 8


def test_places_cover_the_free_room_evenly(world):
    first, length = _placements(world, iterations=400, minimum_share=0.5, maximum_share=0.5)
    assert set(length) == {64}
    counts = np.bincount(first, minlength=65)
    assert len(counts) == 65
    assert counts.min() > 0
    assert 0.45 < (first < 32).mean() < 0.55


def test_a_moment_that_fills_its_video_starts_with_it(world):
    first, length = _placements(world, iterations=5, minimum_share=1.0, maximum_share=1.0)
    assert set(first) == {0}
    assert set(length) == {128}


def test_place_and_share_are_drawn_apart(world):
    first, length = _placements(world, iterations=400, minimum_share=0.2, maximum_share=0.8)
    assert abs(np.corrcoef(first / (128 - length), length)[0, 1]) < 0.1


@pytest.mark.parametrize("shares", ["range", "untrimmed", "durations"])
def test_a_placement_depends_on_seed_and_iteration_only(world, shares):
    def draw(seed, iteration):
        config = small_config("aher", method={"shares": shares}, training={"seed": seed, "batch_size": 16})
        return draw_placement(config, data_of(world, config).untrimmed, _one_row(16), iteration)

    for seed in (0, 7, 2**63 - 2):
        placement = draw(seed, 5)
        np.random.default_rng(seed).random(3)
        assert _same(draw(seed, 5), placement)
        assert not _same(draw(seed, 6), placement)
        assert not _same(draw(seed + 1, 5), placement)
