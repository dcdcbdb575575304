"""Whole runs of every kind that the paper compares: they train, repeat themselves, and read what they may read."""

import dataclasses

import numpy as np
import pytest
import torch
from training_worlds import BASE, NOVEL, PHASES, of_classes, same_states, same_weights, small_config, train_in

from ahernet.checkpoint import load_checkpoint
from ahernet.config import RUNS
from ahernet.data.annotations import Annotations
from ahernet.evaluation.average_precision import average_precision
from ahernet.inference.localize import localize
from ahernet.training.iteration_batches import first_main_iteration
from ahernet.training.loss_log import read_loss_log
from ahernet.training.trainer import total_iterations


def _overfit(world, folder, run, iterations, **changes):
    """Train a network that is not small; return its mAP on the base classes of the videos that it was trained on."""
    config = small_config(
        run,
        model={"width": 1 / 32, "minimum_channels": 32, "steps": 256, "moment_steps": 128},
        loss={"class_cells": "foreground"},
        training={"iterations": iterations, "batch_size": 8, "decay_every": iterations * 3 // 4},
        inference={"class_score": "anchor"},
        **changes,
    )
    train_in(world, folder, config, **({} if config.method.moments == "none" else {"moment_labels": world.labels}))
    found = localize(world.archive, load_checkpoint(folder), classes=BASE, device="cpu", progress=False)
    return average_precision(found, of_classes(world.annotations, BASE)).mean


@pytest.mark.parametrize(("run", "iterations"), [("aher*", 80), ("aher", 100)])
def test_a_network_overfits_a_handful_of_videos(world, tmp_path, run, iterations):
    assert _overfit(world, tmp_path, run, iterations) > 0.95


@pytest.mark.parametrize("run", RUNS)
def test_every_run_trains_and_repeats_itself_bit_for_bit(world, tmp_path, run):
    config = small_config(run, method={"pretrain_iterations": 1, "context_iterations": 1}, training={"iterations": 3})
    result = train_in(world, tmp_path / "one", config)
    torch.rand(3)
    train_in(world, tmp_path / "other", config)
    assert same_weights(tmp_path / "one", tmp_path / "other")
    assert same_states(tmp_path / "one", tmp_path / "other")
    checkpoint = load_checkpoint(tmp_path / "one")
    assert result.iterations == total_iterations(config) == 3 + first_main_iteration(config.method)
    assert checkpoint.classes == (BASE if run == "aher*" else BASE + NOVEL)
    assert checkpoint.moment_classes == (() if run == "aher*" else NOVEL)
    assert all(parameter.isfinite().all() for parameter in checkpoint.model.parameters())
    entries = read_loss_log(tmp_path / "one" / "losses.jsonl")
    assert len(entries) == result.iterations
    assert all(np.isfinite(list(entry.values())).all() for entry in entries)


def test_the_log_has_the_terms_of_each_phase(world, tmp_path):
    train_in(world, tmp_path, small_config("aher", "paper", **PHASES))
    terms = [set(entry) - {"iteration", "total", "learning_rate"} for entry in read_loss_log(tmp_path / "losses.jsonl")]
    localization = {"classification", "offset", "overlap"}
    segments = {"foreground_class", "moment_class"}
    synthetic = {f"synthetic_{name}" for name in localization}
    assert terms == (
        [localization] * 3
        + [{"context"}] * 3
        + [localization | segments | synthetic | {"generator", "discriminator"}] * 4
    )


@pytest.mark.parametrize("run", ["aher", "aher*"])
def test_training_in_bfloat16_works_and_keeps_float32_weights(world, tmp_path, run):
    train_in(world, tmp_path, small_config(run, **PHASES | {"training": {"iterations": 3, "precision": "bfloat16"}}))
    checkpoint = load_checkpoint(tmp_path)
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}
    entries = read_loss_log(tmp_path / "losses.jsonl")
    assert all(np.isfinite(list(entry.values())).all() for entry in entries)


def test_bfloat16_changes_the_losses_a_little(world, tmp_path):
    for precision in ("float32", "bfloat16"):
        train_in(world, tmp_path / precision, small_config("aherR", training={"iterations": 1, "precision": precision}))
    one, other = (read_loss_log(tmp_path / name / "losses.jsonl")[-1] for name in ("float32", "bfloat16"))
    assert one != other
    for term in one:
        assert other[term] == pytest.approx(one[term], rel=0.05, abs=1e-3)


# --- annotations of novel classes -------------------------------------------------------------------------------


def _poisoned(annotations, kind):
    """Annotations whose instances of novel classes are not what they were."""
    if kind == "removed":
        return of_classes(annotations, BASE)
    videos = {}
    for name, video in annotations.videos.items():
        novel = np.array([label in NOVEL for label in video.labels])
        if kind == "moved":
            segments = np.where(novel[:, None], video.segments / 3 + 1, video.segments)
            videos[name] = dataclasses.replace(video, segments=segments)
        else:
            others = (
                dict(zip(NOVEL, (NOVEL[1], NOVEL[0]), strict=True)) if kind == "swapped" else dict.fromkeys(NOVEL, "x")
            )
            videos[name] = dataclasses.replace(video, labels=tuple(others.get(label, label) for label in video.labels))
    return Annotations(videos, annotations.source)


@pytest.mark.parametrize("kind", ["moved", "swapped", "renamed", "removed"])
def test_nothing_is_read_of_the_annotations_of_novel_classes(world, tmp_path, finished, kind):
    poisoned = _poisoned(world.annotations, kind)
    assert any(
        video.labels != world.annotations.videos[name].labels
        or not np.array_equal(video.segments, world.annotations.videos[name].segments)
        for name, video in poisoned.videos.items()
    )
    train_in(world, tmp_path, small_config("aher", **PHASES), annotations=poisoned)
    assert same_weights(tmp_path, finished)
    assert same_states(tmp_path, finished)
    assert load_checkpoint(tmp_path).classes == BASE + NOVEL


def test_the_annotations_of_base_classes_do_matter(world, tmp_path, finished):
    video = world.annotations.videos["v1"]
    moved = {**world.annotations.videos, "v1": dataclasses.replace(video, segments=video.segments / 2)}
    train_in(world, tmp_path, small_config("aher", **PHASES), annotations=Annotations(moved, "moved"))
    assert not same_weights(tmp_path, finished)


def test_only_labelled_moments_are_read(world, tmp_path, monkeypatch):
    """Moments of base classes lie in the same archive, without a label."""
    read, positions = type(world.moments).read, set()

    def watched_read(self, wanted):
        if self is world.moments:
            positions.update(wanted)
        return read(self, wanted)

    monkeypatch.setattr(type(world.moments), "read", watched_read)
    train_in(world, tmp_path, small_config("aher", training={"iterations": 4}))
    assert {world.moments.ids[position] for position in positions} == set(world.novel_labels)
