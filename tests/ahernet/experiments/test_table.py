import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from ahernet.checkpoint import Checkpoint
from ahernet.config import RUNS, config_from_dict, preset, with_run
from ahernet.data.annotations import Annotations, VideoAnnotations
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
from ahernet.experiments import runner
from ahernet.experiments import table as table_of_runs
from ahernet.experiments.paper_settings import Part, SettingPlan, write_setting
from ahernet.experiments.pictures import draw_table
from ahernet.experiments.runner import Unit, found_in, kept_result, run_units, with_one_network
from ahernet.experiments.setting import Source, make_setting, rendered_source
from ahernet.experiments.setting_file import read_setting
from ahernet.experiments.table import (
    PAPER_K600,
    PAPER_RUNS,
    PAPER_TRANSFERS,
    RELEASED,
    SHARES,
    format_table,
    run_table,
    table_configs,
)
from ahernet.files import claim_folder
from ahernet.model.localizer import Localizer
from ahernet.rendered import WorldConfig

WORLD = WorldConfig(
    classes=4, training_videos=8, validation_videos=4, dimension=8, min_duration=20, max_duration=30, min_share=0.3
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


def test_rows_are_the_runs_and_the_transfer_variants_of_the_paper():
    runs = table_configs("runs", CONFIG)
    assert list(runs) == list(RUNS)
    assert set(RUNS) - set(PAPER_RUNS) == {"aherR", "aherB"}
    assert runs["aher-"].inference.candidates == "crops"
    variants = table_configs("transfer", CONFIG)
    assert list(variants) == list(PAPER_TRANSFERS)
    assert len({(row.model.transfer_layers, row.model.transfer_activation) for row in variants.values()}) == 7
    assert all(row.method == table_configs("runs", CONFIG)["aher"].method for row in variants.values())
    with pytest.raises(
        UserError, match="table: expected one of runs, transfer, k600, shares, departures, released, got 'three'"
    ):
        table_configs("three", CONFIG)


def test_shares_are_of_the_annotations_of_the_oracle_alone():
    rows = table_configs("shares", CONFIG)
    whole = table_configs("runs", CONFIG)
    assert rows.pop("aher") == whole["aher"]
    assert [row.method.annotated_share for row in rows.values()] == list(SHARES)
    assert rows["aher* 100 %"] == whole["aher*"]
    assert list(table_configs("k600", CONFIG)) == list(PAPER_K600)


def test_departures_are_all_that_the_preset_decides_otherwise_than_the_paper():
    rows = table_configs("departures", preset("tuned"))
    paper, tuned = with_run(preset("paper"), "aher"), rows["aher"]
    assert tuned == with_run(preset("tuned"), "aher")
    assert rows["matching at 0.8"] == replace(tuned, assignment=paper.assignment)
    assert replace(rows["all of them"], preset="paper") == paper


@pytest.mark.parametrize(("name", "own"), [("paper", {"hard NMS at 0.9"}), ("tuned", {"hard negatives"})])
def test_choices_of_the_released_code_that_a_preset_does_not_make_are_made_one_by_one(name, own):
    rows = table_configs("released", preset(name))
    config = rows["aher"]
    assert config == with_run(preset(name), "aher")
    assert list(rows) == ["aher", *[choice for choice in RELEASED if choice not in own], "all of them"]
    for choice in RELEASED.keys() - own:
        for section, values in RELEASED[choice].items():
            changed = replace(config, **{section: replace(getattr(config, section), **values)})
            assert rows[choice] == changed != config
    together = rows["all of them"]
    assert (together.inference.class_score, together.inference.suppression_rank) == ("video", "overlap")
    assert together.loss.overlap_anchors == "hard"


def test_a_table_has_every_run_with_every_seed_and_its_settings(source, tmp_path):
    table = run_table("runs", source, CONFIG, [0, 1], tmp_path, progress=False)
    assert json.loads(json.dumps(table)) is not None
    assert set(table["rows"]) == set(RUNS)
    assert [(run["run"], run["seed"]) for run in table["runs"]] == [(name, seed) for name in RUNS for seed in (0, 1)]
    for run in table["runs"]:
        measures = run["measures"]["novel"]
        assert 0 <= measures["mean_average_precision"] <= measures["diagnosis"]["true_ranking"] <= 1
        assert set(run["setting"]["base"]).isdisjoint(run["setting"]["novel"])
        assert run["config"]["training"]["seed"] == run["seed"]
    row = table["rows"]["aher*"]
    values = [run["measures"]["novel"]["proposal_area"] for run in table["runs"] if run["run"] == "aher*"]
    assert row["mean"]["novel.proposal_area"] == pytest.approx(sum(values) / 2, abs=1e-6)
    text = format_table(table).splitlines()
    assert [line.split()[0] for line in text[1:]] == list(RUNS)
    assert len({len(line) for line in text}) == 1


def test_rows_can_be_chosen(source, tmp_path):
    table = run_table("departures", source, CONFIG, [0], tmp_path, rows=["generators from scratch"], progress=False)
    assert list(table["rows"]) == ["generators from scratch"]
    assert [run["config"]["method"]["pretrain_adversaries"] for run in table["runs"]] == [False]
    with pytest.raises(UserError, match=r"rows: expected some of 'aher', .*, got 'aherX'"):
        run_table("departures", source, CONFIG, [0], tmp_path, rows=["aherX"])


def test_without_aher_nothing_is_compared_with_it(source, tmp_path):
    table = run_table("runs", source, CONFIG, [0], tmp_path, rows=["aher0"], progress=False)
    assert table["rows"]["aher0"]["behind_aher"] == {"mean": None, "deviation": None}
    assert format_table(table).splitlines()[1].split()[-5] == "-"


def test_rows_of_one_name_in_two_tables_are_two_runs(source, tmp_path):
    setting = make_setting(source, 0, tmp_path)
    files = {
        Unit("all of them", table_configs(table, CONFIG)["all of them"], setting).file_name
        for table in ("departures", "released")
    }
    assert len(files) == 2


def test_a_run_that_another_command_trains_is_left_alone(source, tmp_path):
    unit = Unit("aher0", table_configs("runs", CONFIG)["aher0"], make_setting(source, 0, tmp_path))
    folder = tmp_path / f"{unit.file_name}.run"
    folder.mkdir()
    (folder / "of another").touch()
    with claim_folder(folder), pytest.raises(UserError, match="another process"):
        run_units([unit], tmp_path)[0]
    assert (folder / "of another").exists()


def test_a_finished_run_is_not_repeated_unless_its_settings_changed(source, tmp_path):
    unit = Unit("aher0", table_configs("runs", CONFIG)["aher0"], make_setting(source, 0, tmp_path))
    first = run_units([unit], tmp_path)[0]
    assert run_units([unit], tmp_path)[0] == first
    path = tmp_path / unit.file_name
    marked = json.loads(path.read_text()) | {"seconds": -1.0}
    path.write_text(json.dumps(marked))
    assert run_units([unit], tmp_path)[0]["seconds"] == -1.0
    changed = replace(unit, config=replace(unit.config, training=replace(unit.config.training, seed=9)))
    assert run_units([changed], tmp_path)[0]["seconds"] >= 0
    assert not list(tmp_path.glob("*.run"))


def test_a_finished_table_starts_no_process_and_an_unfinished_one_only_for_what_is_missing(
    source, tmp_path, monkeypatch
):
    # A thread spares the start of a process.
    given = []

    class Pool(ThreadPoolExecutor):
        def submit(self, run, group, *others):
            given.append([unit.name for unit in group])
            return super().submit(run, group, *others)

    monkeypatch.setattr(table_of_runs, "worker_pool", Pool)
    for rows in (["aher0"], ["aher0", "aher-"], ["aher-", "aher0"]):
        table = run_table("runs", source, CONFIG, [0], tmp_path, rows=rows, progress=False)
    assert given == [["aher0"], ["aher-"]]
    assert [run["run"] for run in table["runs"]] == ["aher0", "aher-"]
    path = next(tmp_path.glob("aher0-*.json"))
    path.write_text(path.read_text()[:-20])
    assert run_table("runs", source, CONFIG, [0], tmp_path, rows=rows, progress=False)["rows"].keys() == {*rows}
    assert given[2:] == [["aher0"]]


def test_rows_that_differ_in_inference_alone_share_a_network_and_score_as_if_each_had_its_own(
    source, tmp_path, monkeypatch
):
    setting = make_setting(source, 0, tmp_path)
    config = table_configs("runs", CONFIG)["aherM"]
    hard = replace(config, inference=replace(config.inference, suppression="hard", nms_threshold=0.5))
    units = [Unit("soft", config, setting), Unit("hard", hard, setting)]
    other = Unit("other seed", replace(config, training=replace(config.training, seed=9)), setting)
    assert with_one_network([units[0], other, units[1]]) == [tuple(units), (other,)]
    apart = [run_units([unit], tmp_path / "apart")[0]["measures"] for unit in units]
    trained, train = [], runner.train

    def counted(*arguments, **settings):
        trained.append(arguments)
        return train(*arguments, **settings)

    monkeypatch.setattr(runner, "train", counted)
    together = run_units(units, tmp_path / "together")
    assert [result["measures"] for result in together] == apart
    assert apart[0] != apart[1]
    assert len(trained) == 1
    assert run_units(units, tmp_path / "together") == together
    (tmp_path / "together" / units[1].file_name).unlink()
    assert [result["measures"] for result in run_units(units, tmp_path / "together")] == apart
    assert len(trained) == 2
    assert not list(tmp_path.rglob("*.run"))


def clips_setting(folder):
    """A setting whose moments have an archive of their own, as Kinetics-600 has, and no annotated training videos."""

    def videos(subset, labels):
        found = {}
        for label in labels:
            key = f"{subset}_{label}"
            found[key] = VideoAnnotations(key, subset, 20.0, np.array([[4.0, 12.0]]), (label,))
        return found

    base = Annotations(videos("training", "ab"), "base")
    plan = SettingPlan(
        "clips",
        Part(("a", "b"), base, "training", None),
        Part(("c", "d"), Annotations(videos("validation", "cd"), "novel"), None, "validation"),
    )
    return read_setting(write_setting(plan, folder / "setting", render=True, progress=False), folder)


def test_table_four_runs_on_a_setting_without_an_oracle_and_is_drawn(tmp_path, monkeypatch):
    # A thread spares the start of a process.
    monkeypatch.setattr(table_of_runs, "worker_pool", ThreadPoolExecutor)
    setting = clips_setting(tmp_path)
    table = run_table("k600", setting, CONFIG, [3], tmp_path, rows=["aher0"], progress=False)
    (run,) = table["runs"]
    assert set(run["measures"]) == {"novel"}
    assert (run["seed"], run["setting"]["split"], run["setting"]["novel"]) == (3, 3, ["c", "d"])
    header, line = format_table(table).splitlines()
    assert header.split()[:3] == ["@0.5", "@0.75", "@0.95"]
    assert line.endswith("19.26 / 16.72 / 0.88 / 14.18")
    draw_table(table, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"clips: aher\* needs annotated videos of novel classes"):
        run_table("shares", setting, CONFIG, [0], tmp_path, rows=["aher* 10 %"])


@pytest.mark.parametrize("name", ["paper", "tuned", "tiny"])
def test_presets_have_all_that_every_run_needs(name):
    rows = table_configs("runs", preset(name))
    assert rows["aherA-"].method.context_iterations > 0
    assert not rows["aherA-"].method.real_residual
    assert rows["aherR"].method.real_residual
    assert not rows["aher"].method.real_residual


def test_videos_without_features_are_counted_and_ids_may_lack_their_prefix(tmp_path):
    def video(key):
        return VideoAnnotations(key, "validation", 20.0, np.array([[4.0, 12.0]]), ("c",))

    annotations = Annotations({key: video(key) for key in ("v_one", "v_two", "v_three")}, "some")
    with ArchiveWriter(tmp_path / "f.h5", dimension=4) as writer:
        for key in ("one", "v_three"):
            writer.add(key, np.ones((40, 4)))
    config = replace(CONFIG, model=replace(CONFIG.model, feature_dimension=4))
    checkpoint = Checkpoint(config, ("c", "d"), (), Localizer(config.model, 2).eval(), tmp_path)
    source = Source("some", tmp_path / "f.h5", tmp_path / "unused.json")
    found, truth, without = found_in(source, annotations, checkpoint, ("c",))
    assert (list(found.video_ids), list(truth.videos), without) == (["one", "v_three"], ["v_one", "v_three"], 1)
    assert found.classes == ("c",)
    assert 0 < found.segments.max() <= 20.0
    with pytest.raises(UserError, match=r"f.h5: has none of the 1 videos of none to score on"):
        found_in(source, Annotations({"x": video("x")}, "none"), checkpoint, ("c",))


def test_a_result_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "result.json").mkdir()
    with pytest.raises(UserError, match=r"result\.json: cannot read the finished run \(Is a directory\); remove it"):
        kept_result(tmp_path / "result.json", {}, {}, dict)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "{}", '{"seed": 3}', '{"seed": 0, "a": 3, "a": 4}'])
def test_a_damaged_result_is_measured_again(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    for measured in ({"a": 1}, {"a": 2}):  # the second is not, for the first is kept
        assert kept_result(path, {"run": "aher"}, {"seed": 0}, lambda m=measured: m) == {
            "run": "aher",
            "seed": 0,
            "a": 1,
        }
