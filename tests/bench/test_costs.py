"""What ops must move and compute, against counts by hand."""

import ahernet_kernels as kernels
import pytest
import torch
from bench_fakes import CEILINGS

from ahernet.config import preset, with_run
from bench import cases, costs
from bench.costs import COSTS, Cost


def test_every_op_of_the_package_has_a_cost():
    other_names = {"resample_checked": "resample"}
    ops = {name for name in kernels.__all__ if callable(getattr(kernels, name)) and name.islower()}
    assert {other_names.get(name, name) for name in ops} <= set(COSTS)


def test_ragged_ground_truths_count_once_and_meet_the_anchors_of_their_video_alone():
    anchors, truths = cases.anchors(), cases.ground_truths(3, 4)
    arguments = (anchors, *truths)
    found = kernels.assign(*arguments)
    cost = COSTS["assign"](arguments, found)
    segments, labels, offsets = truths
    inputs = 8 * len(anchors) + 8 * len(segments) + 8 * len(labels) + 8 * len(offsets)
    assert cost.bytes == inputs + 3 * len(anchors) * (8 + 8 + 8 + 4)
    assert cost.operations == costs.PAIR_OPERATIONS * len(anchors) * len(segments)


def test_picking_reads_only_the_rows_that_are_picked():
    arguments = (torch.rand(2, 50, 2), torch.rand(2, 50), torch.zeros(2, 50, dtype=torch.int64))
    index = torch.tensor([[3, 1, -1], [0, -1, -1]])
    cost = COSTS["pick"]((*arguments, index), kernels.pick(*arguments, index))
    assert cost.bytes == 6 * 8 + 3 * (8 + 4 + 8) + 6 * (8 + 4 + 8)


def test_classification_counts_products_of_matrices_apart():
    arguments = cases.classifier(2, 5, torch.float32)
    cost = COSTS["classify"](arguments, kernels.classify(*arguments))
    assert cost.matrix_operations == 2 * 5 * 2 * 92_160  # cells times channels of all scales, as the paper has them
    assert cost.operations == costs.LOGIT_OPERATIONS * 5 * 2 * 255


def test_soft_suppression_passes_over_its_candidates_once_a_pick():
    segments, scores, labels = cases.candidates(2, 96, 20)
    arguments = (segments, scores, labels)
    found = kernels.soft_nms(*arguments, "gaussian", 0.5, 10)
    assert COSTS["soft_nms"](arguments, found).operations == 12 * 20 * 96
    assert COSTS["nms"](arguments, found[:2]).operations == 0


def test_the_backbone_of_the_paper_takes_19_7_billion_operations_a_video():
    operations = costs.convolution_operations(preset("paper").model, 512)
    assert len(operations) == 10
    assert sum(operations) == pytest.approx(19.7e9, rel=0.001)
    assert operations[0] == 2 * 3 * 2048 * 2048 * 512


def test_a_training_iteration_counts_every_pass_once():
    config = with_run(preset("paper"), "aher")
    whole, part = (sum(costs.convolution_operations(config.model, steps)) for steps in (512, 256))
    cost = costs.training_iteration(config, 2, (), 100)
    generators = 2 * 3 * 2048 * 1024 * (256 + 128) * 2
    assert 2 * (7 * whole + 6 * part + 3 * generators) * 0.7 < cost.matrix_operations
    assert cost.matrix_operations < 2 * (7 * whole + 6 * part + 3 * generators)
    assert cost.bytes == 600


def test_a_class_loss_costs_three_products_of_the_labelled_cells():
    features, weights, biases = cases.classifier(2, 5, torch.float32)
    labels = torch.full((2, 255), -1)
    labels[:, 0] = 3  # one cell of the first scale, 256 channels, in either video
    arguments = (features, weights, biases, labels)
    cost = COSTS["classification_loss"](arguments, kernels.classification_loss(*arguments))
    assert cost.matrix_operations == 3 * 2 * 5 * 2 * 256


@pytest.mark.parametrize(
    ("cost", "seconds"),
    [(Cost(3 * 10**12), 1.0), (Cost(3, 5 * 10**13), 1.0), (Cost(3 * 10**12, 10**13, 16 * 10**14), 2.0)],
)
def test_the_floor_is_that_of_the_slowest_part(cost, seconds):
    assert cost.floor_seconds(CEILINGS) == pytest.approx(seconds)


def test_a_ceiling_that_was_not_measured_bounds_nothing():
    assert Cost(3 * 10**12, 10**20).floor_seconds({"copy_bytes_per_second": 3e12}) == pytest.approx(1.0)
