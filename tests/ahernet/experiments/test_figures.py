import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ahernet import timelines
from ahernet.checkpoint import load_checkpoint
from ahernet.commands.experiments import FIGURES as OFFERED
from ahernet.config import config_from_dict, with_run
from ahernet.data.annotations import VideoAnnotations
from ahernet.errors import UserError
from ahernet.experiments import added, certainty, embedding, figures, layers
from ahernet.experiments.embedding import KINDS, principal_components, told_apart
from ahernet.experiments.figures import FIGURES, measured, run_figure
from ahernet.experiments.runner import Unit, trained_unit
from ahernet.experiments.setting import make_setting, rendered_source
from ahernet.experiments.synthetic import load_generators
from ahernet.rendered import WorldConfig
from ahernet.training.losses import GroundTruth

WORLD = WorldConfig(
    classes=4, training_videos=8, validation_videos=4, dimension=8, min_duration=20, max_duration=30, max_share=0.3
)
CONFIG = config_from_dict(
    {
        "preset": "tiny",
        "model": {"width": 1 / 256, "minimum_channels": 4, "steps": 128, "moment_steps": 64},
        "method": {"pretrain_iterations": 1, "context_iterations": 1},
        "training": {"batch_size": 2, "iterations": 2},
    }
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return rendered_source(tmp_path_factory.mktemp("data"), WORLD)


@pytest.fixture(scope="module")
def setting(source):
    return make_setting(source, 0, source.archive.parent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def networks(setting, folder):
    return {run: trained_unit(Unit(run, with_run(CONFIG, run), setting), folder) for run in ("aher", "aher-", "aherA-")}


def result_of(name, networks, setting):
    measured = FIGURES[name].measure({run: networks[run] for run in FIGURES[name].runs}, setting, 0)
    return {"table": name, "source": "rendered", "seeds": [0], "results": [{"seed": 0, **measured}]}


def test_layers_count_what_lies_in_instances_and_how_much_of_it_is_right(networks, setting, tmp_path):
    result = result_of("layers", networks, setting)
    found = result["results"][0]
    assert found["videos"] > 0
    assert [layer["cells"] for layer in found["layers"]] == [32, 16, 8, 4, 2, 1, 1, 1]
    for layer in found["layers"]:
        assert 0 <= layer["proposals"] <= layers.PROPOSALS * found["videos"]
        for run in layers.RUNS:
            assert (layer[run] is None) == (layer["proposals"] == 0)
            assert layer[run] is None or 0 <= layer[run] <= 1
    assert sum(layer["proposals"] for layer in found["layers"]) > 0
    text = FIGURES["layers"].text(result).splitlines()
    assert len(text) == 1 + 8 + 1
    FIGURES["layers"].draw(result, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_the_class_of_a_proposal_is_that_of_the_instance_its_centre_lies_in():
    video = VideoAnnotations("v", "", 10.0, np.array([[1.0, 4.0], [3.0, 6.0]]), ("b", "a"))
    segments = torch.tensor([[[0.0, 0.4], [0.3, 0.5], [0.0, 0.7], [0.4, 0.6], [0.5, 1.0]]])
    assert layers._truth([(video, 10.0)], segments, ("a", "b")).tolist() == [[1, 0, 1, 0, -1]]


def test_timelines_hold_the_best_of_both_runs_and_are_drawn(networks, setting, tmp_path):
    result = result_of("timelines", networks, setting)
    videos = result["results"][0]["videos"]
    assert 0 < len(videos) <= 6
    for video in videos:
        assert {one["label"] for one in video["instances"]} <= set(setting.novel)
        for found in video["found"].values():
            assert 0 < len(found) <= 5
            scores = [one["score"] for one in found]
            assert scores == sorted(scores, reverse=True)
    FIGURES["timelines"].draw(result, tmp_path / "timelines.png")
    drawn = {path.stem for path in (tmp_path / "timelines" / "seed-0").glob("*.png")}
    assert drawn == {video["video"] for video in videos}
    assert len(FIGURES["timelines"].text(result).splitlines()) == 1 + len(videos)


def test_the_head_of_timelines_counts_instances_once_and_detections_by_run(tmp_path, monkeypatch):
    instances = [{"segment": [1.0, 2.0], "label": label} for label in ("a", "b", "a")]
    counts = {"aher": 2, "aher-": 1}
    found = {run: [{"segment": [1.0, 2.0], "label": "a", "score": 0.5}] * count for run, count in counts.items()}
    video = {"video": "v", "duration": 9.0, "instances": instances, "found": found}
    subtitles = []
    monkeypatch.setattr(timelines, "_figure", lambda picture: subtitles.append(picture.subtitle) or Figure())
    FIGURES["timelines"].draw({"source": "s", "results": [{"seed": 0, "videos": [video]}]}, tmp_path / "t.png")
    assert subtitles == ["3 instances of 2 classes  ·  aher: 2 detections  ·  aher-: 1 detection"]


def test_an_embedding_adds_the_residual_of_real_background_where_training_does(networks, setting):
    checkpoint = load_checkpoint(networks["aher"])
    generators = load_generators(networks["aher"], checkpoint.config)
    with torch.inference_mode():
        (inside, without), (_, added) = (
            embedding._synthetic_cells(with_residual(checkpoint, residual), generators, setting, 0)
            for residual in (False, True)
        )
    assert without.shape == added.shape
    assert not np.allclose(without, added)
    assert len(inside) > 0


def with_residual(checkpoint, residual):
    config = checkpoint.config
    return replace(checkpoint, config=replace(config, method=replace(config.method, real_residual=residual)))


@pytest.mark.parametrize("sklearn", [False, True])
def test_an_embedding_says_how_it_was_projected(networks, setting, tmp_path, monkeypatch, sklearn):
    if sklearn:
        pytest.importorskip("sklearn")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = result_of("embedding", networks, setting)
    found = result["results"][0]
    assert found["projection"].startswith("t-SNE" if sklearn else "first two principal components")
    assert tuple(found["points"]) == KINDS
    assert all(np.isfinite(points).all() and np.shape(points)[1] == 2 for points in found["points"].values())
    FIGURES["embedding"].draw(result, tmp_path / "embedding.png")
    assert found["projection"] in FIGURES["embedding"].text(result)


def test_sets_that_are_alike_cannot_be_told_apart_and_distant_ones_can():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 400, 3))
    assert 0.4 < told_apart(one, other) < 0.6
    assert told_apart(one, other + 20) == 1.0
    assert told_apart(one, other[:50] + 20) == 1.0


def test_principal_components_keep_distances_and_order_variances():
    rows = np.random.default_rng(0).standard_normal((20, 5)) * [1, 2, 3, 4, 5]
    reduced = principal_components(rows, 256)
    assert reduced.shape == (20, 5)
    np.testing.assert_allclose(np.linalg.norm(reduced[0] - reduced[1]), np.linalg.norm(rows[0] - rows[1]))
    assert (np.diff(reduced.var(axis=0)) <= 0).all()
    assert principal_components(rows, 2).shape == (20, 2)


def test_certainty_is_that_of_good_proposals_in_synthetic_and_in_real_videos(networks, setting, tmp_path, monkeypatch):
    result = result_of("certainty", networks, setting)
    for kinds in result["results"][0]["runs"].values():
        assert tuple(kinds) == certainty.KINDS
        for found in kinds.values():
            assert (found["overlap"] is None) == (found["anchors"] == 0)
            assert found["overlap"] is None or 0 < found["overlap"] < 1
    assert len(FIGURES["certainty"].text(result).splitlines()) == 1 + 2 + 1
    FIGURES["certainty"].draw(result, tmp_path / "certainty.png")
    monkeypatch.setattr(certainty, "GOOD", 0.0)  # every anchor of every video
    everywhere = result_of("certainty", networks, setting)["results"][0]["runs"]["aher"]
    anchors = load_checkpoint(networks["aher"]).model.anchors.shape[0]
    assert all(found["anchors"] % anchors == 0 and found["anchors"] > 0 for found in everywhere.values())


def test_certainty_is_the_mean_prediction_where_the_overlap_is_large(monkeypatch):
    segments = torch.tensor([[[0.0, 0.5], [0.0, 0.4], [0.5, 1.0]], [[0.0, 1.0], [0.2, 0.3], [0.0, 0.0]]])
    predicted = torch.tensor([[0.25, 0.75, 0.9], [0.5, 0.1, 0.1]])
    truth = GroundTruth(torch.tensor([[0.0, 0.5], [0.1, 1.0]]), torch.tensor([0, 1]), torch.tensor([0, 1, 2]))
    monkeypatch.setattr(certainty, "_proposals", lambda checkpoint, sequence: (segments, predicted))
    assert certainty._certainty(None, [(None, truth)]) == {"anchors": 3, "overlap": 0.5}


def test_added_classes_are_scored_beside_those_that_training_knew(networks, setting, tmp_path):
    result = result_of("added", networks, setting)
    found = result["results"][0]
    assert sorted(found["added"] + found["others"]) == sorted(setting.novel)
    assert found["added"] == list(added.added_classes(setting.novel, 0))
    assert len(found["added"]) == 1
    assert all(0 <= value <= 1 for way in found["ways"].values() for value in way.values())
    (folder,) = (networks["aher"].parent / "added-0").glob("aher before-0-*")
    before = load_checkpoint(folder)
    assert set(before.moment_classes) == set(found["others"])
    FIGURES["added"].draw(result, tmp_path / "added.png")
    assert FIGURES["added"].text(result).splitlines()[0].split() == ["added", "classes", "other", "novel", "classes"]


def test_a_quarter_of_the_novel_classes_is_added_another_with_every_seed():
    novel = tuple("abcdefgh")
    chosen = [added.added_classes(novel, seed) for seed in range(5)]
    assert all(len(names) == 2 and set(names) < set(novel) for names in chosen)
    assert len(set(chosen)) > 1
    assert added.added_classes(novel, 0) == chosen[0]
    assert len(added.added_classes(("a", "b"), 0)) == 1


def test_a_trained_network_is_kept_and_made_anew_for_other_settings(setting, tmp_path):
    unit = Unit("aher0", with_run(CONFIG, "aher0"), setting)
    first = trained_unit(unit, tmp_path)
    (first / "left").touch()
    weights = (first / "checkpoint.json").read_text()
    assert trained_unit(unit, tmp_path) == first
    assert (first / "left").exists()
    assert (first / "checkpoint.json").read_text() == weights
    changed = replace(unit, config=replace(unit.config, training=replace(unit.config.training, iterations=1)))
    second = trained_unit(changed, tmp_path)
    assert second != first
    assert (second / "checkpoint.json").read_text() != weights


def test_a_figure_is_measured_once_per_seed(setting, source, networks, folder, monkeypatch):
    # A thread spares the start of a process.
    monkeypatch.setattr(figures, "worker_pool", ThreadPoolExecutor)
    units = [Unit("aher", with_run(CONFIG, "aher"), setting)]
    found = measured("embedding", units, folder)
    path = folder / "embedding-0.json"
    path.write_text(path.read_text().replace(f'"layer": {found["layer"]}', '"layer": -1'))
    result = run_figure("embedding", source, CONFIG, [0], folder, progress=False)
    assert [(kept["seed"], kept["layer"]) for kept in result["results"]] == [(0, -1)]
    assert (result["table"], result["source"], result["seeds"]) == ("embedding", "rendered", [0])
    assert set(OFFERED) == set(FIGURES)


def test_a_figure_that_is_measured_starts_no_process_and_needs_no_networks(
    setting, source, folder, monkeypatch, tmp_path
):
    measured("embedding", [Unit("aher", with_run(CONFIG, "aher"), setting)], folder)
    shutil.copy(folder / "embedding-0.json", tmp_path)
    monkeypatch.setattr(figures, "worker_pool", lambda jobs: nullcontext())  # which takes no work
    result = run_figure("embedding", source, CONFIG, [0], tmp_path, progress=False)
    assert [found["seed"] for found in result["results"]] == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["embedding-0.json"]


def test_a_setting_without_videos_to_look_into_is_refused(setting, networks):
    elsewhere = replace(setting, novel_videos=replace(setting.novel_videos, archive=setting.moments))
    with pytest.raises(UserError, match="has no validation video of rendered of known duration"):
        FIGURES["layers"].measure(networks, elsewhere, 0)
