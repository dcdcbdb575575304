import dataclasses
import functools
import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahernet.config import (
    PRESETS,
    AssignmentConfig,
    Config,
    InferenceConfig,
    ModelConfig,
    TrainingConfig,
    config_from_dict,
    config_to_dict,
    preset,
    read_config,
    with_feature_dimension,
)
from ahernet.errors import UserError

NESTED = functools.reduce(lambda inner, _: {"a": inner}, range(100_000), {})


def test_paper_preset_follows_the_paper():
    config = PRESETS["paper"]
    assert config.model == ModelConfig(2048, 1.0, 1, 512, 256, 3, 2, "elu", 1.0, 1.0)
    assert config.assignment == AssignmentConfig(0.8, 0.3, force_match=False)
    assert (config.training.batch_size, config.training.learning_rate) == (16, 1e-4)
    assert (config.training.decay_every, config.training.decay_factor) == (5_000, 0.1)
    assert config.loss.class_cells == "foreground"
    assert config.inference.nms_threshold == 0.9
    assert config.inference.class_score == "anchor"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_carry_their_name_and_survive_a_round_trip_through_json(name):
    config = preset(name)
    assert config.preset == name
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_values_that_are_left_out_come_from_the_named_preset():
    config = config_from_dict({"preset": "tiny", "training": {"iterations": 7}})
    assert config.training == dataclasses.replace(PRESETS["tiny"].training, iterations=7)
    assert config.model == PRESETS["tiny"].model


def test_an_empty_dictionary_is_the_paper_preset():
    assert config_from_dict({}) == Config() == PRESETS["paper"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"preset": "tinny"}, ["preset: expected one of paper, tuned, tiny, got 'tinny'", "did you mean tiny?"]),
        ({"preset": 3}, ["preset: expected a name, got 3"]),
        ({"trainin": {}}, ["trainin: unknown key (did you mean training?)", "one of preset, model"]),
        ({"training": {"batchsize": 4}}, ["training.batchsize: unknown key (did you mean batch_size?)"]),
        ({"training": {"zzz": 4}}, ["training.zzz: unknown key, expected one of iterations,"]),
        ({"training": 5}, ["training: expected a table of settings, got 5"]),
        ({"training": {"batch_size": 0}}, ["training.batch_size: expected an integer at least 1", "got 0"]),
        ({"training": {"batch_size": 4.0}}, ["training.batch_size: expected an integer", "got 4.0"]),
        ({"training": {"batch_size": True}}, ["training.batch_size: expected an integer", "got True"]),
        ({"training": {"learning_rate": 0}}, ["training.learning_rate: expected a finite number above 0"]),
        ({"training": {"learning_rate": "fast"}}, ["training.learning_rate: expected a finite number", "got 'fast'"]),
        ({"training": {"learning_rate": float("nan")}}, ["training.learning_rate: expected a finite number", "nan"]),
        ({"loss": {"offset": float("inf")}}, ["loss.offset: expected a finite number at least 0", "got inf"]),
        ({"loss": {"class_cells": "al"}}, ["loss.class_cells: expected one of foreground, all, got 'al'"]),
        ({"assignment": {"force_match": 1}}, ["assignment.force_match: expected true or false, got 1"]),
        (
            {"assignment": {"background_threshold": 0.9}},
            ["assignment.background_threshold: expected at most assignment.foreground_threshold (0.8)", "0.9"],
        ),
        ({"method": {"minimum_share": 0.99}}, ["method.minimum_share: expected at most method.maximum_share (0.95)"]),
        ({"method": {"untrimmed": "none"}}, ["method.moments: expected classified or localized"]),
        (
            {"method": {"untrimmed": "none", "moments": "localized", "context": "background"}},
            ["method.context: background needs untrimmed videos"],
        ),
        (
            {"method": {"untrimmed": "proposals", "moments": "localized"}},
            ["method.moments: localized needs the weight transfer", "method.untrimmed proposals"],
        ),
        *(
            ({"method": {"context": context, "moments": moments}}, [f"method.context: {context} is for", moments])
            for context in ("background", "pretrained", "adversarial")
            for moments in ("none", "classified")
        ),
        (
            {"method": {"moments": "localized", "context": "pretrained", "context_iterations": 0}},
            ["method.context_iterations: expected at least 1"],
        ),
        ({"model": {"transfer_layers": 4}}, ["model.transfer_layers: expected an integer", "at most 3, got 4"]),
        ({"model": {"transfer_activation": "Elu"}}, ["one of none, relu, leaky_relu, elu", "did you mean elu?"]),
        (
            {"inference": {"nms_threshold": 1.5}},
            ["inference.nms_threshold: expected a finite number at least 0 and at"],
        ),
        ({"inference": {"top_k": 1 << 31}}, ["inference.top_k: expected an integer", "at most 2147483647, got"]),
        ({"inference": {"top_k_before": 1 << 31}}, ["inference.top_k_before: ", "at most 2147483647, got 2147483648"]),
        ({"training": {"iterations": 10**400}}, ["training.iterations: expected an integer", "at most 2147483647"]),
        ({"loss": {"offset": 10**400}}, ["loss.offset: expected a finite number at least 0, got 1000000", "0..."]),
        ({"loss": {"offset": 10**5000}}, ["loss.offset: ", "got a value of type int that is too long to write"]),
        ({"loss": {"class_cells": 10**5000}}, ["loss.class_cells: expected one of", "too long to write"]),
        ({"training": {"iterations": NESTED}}, ["training.iterations: expected an integer", "of type dict"]),
        ({"preset": NESTED}, ["preset: expected a name", "of type dict"]),
        (
            {"inference": {"suppression": "linear", "suppression_rank": "overlap"}},
            ["inference.suppression_rank: overlap is for hard suppression, inference.suppression is linear"],
        ),
        ({"inference": {"suppression": ["hard"]}}, ["inference.suppression: expected one of hard, linear"]),
    ],
)
def test_errors_name_the_source_the_key_and_what_was_expected(data, words):
    with pytest.raises(UserError) as caught:
        config_from_dict(data, "run.toml")
    message = str(caught.value)
    assert message.startswith("run.toml: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_integers_are_accepted_where_a_number_is_expected():
    assert config_from_dict({"loss": {"offset": 3}}).loss.offset == 3


def test_sections_check_themselves_when_built_in_code():
    with pytest.raises(UserError, match=r"inference\.top_k: expected an integer at least 1"):
        InferenceConfig(top_k=0)
    with pytest.raises(UserError, match=r"training\.iterations"):
        dataclasses.replace(TrainingConfig(), iterations=-1)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3))
def test_any_value_of_any_setting_is_taken_or_refused_with_its_key(value):
    for section in ("model", "assignment", "loss", "training", "inference"):
        for item in dataclasses.fields(getattr(Config(), section)):
            message = None
            try:
                config = config_from_dict({section: {item.name: value}})
            except UserError as error:
                message = str(error)
            if message is None:
                assert getattr(getattr(config, section), item.name) == value
            else:
                assert message.startswith(f"configuration: {section}.")


def test_toml_files_are_read(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('preset = "tiny"\n[training]\niterations = 12\n[inference]\nsuppression = "gaussian"\n')
    config = read_config(path)
    assert (config.preset, config.training.iterations, config.inference.suppression) == ("tiny", 12, "gaussian")
    assert config == config_from_dict(tomllib.loads(path.read_text()))


def test_toml_files_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(b'\xef\xbb\xbfpreset = "tiny"\n')
    assert read_config(path).preset == "tiny"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"training.iterations = {'9' * 400}", "training.iterations: expected an integer"),
        (f"training.iterations = {'9' * 5000}", "not a TOML file"),
        (f"training.iterations = 0x{'f' * 5000}", "training.iterations: expected an integer"),
        (f"inference.minimum_score = -{'9' * 400}", "inference.minimum_score: expected a finite number, got -99"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "{a = " * 100_000, "nested too deeply"),
    ],
)
def test_giant_numbers_and_deep_nesting_in_a_file_are_named(tmp_path, content, words):
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_bad_files_are_named(tmp_path):
    missing, broken, wrong = tmp_path / "no.toml", tmp_path / "broken.toml", tmp_path / "wrong.toml"
    broken.write_text("training = [")
    wrong.write_text("[training]\nseeds = 1\n")
    with pytest.raises(UserError, match=r"no\.toml: cannot read the configuration \(No such file"):
        read_config(missing)
    with pytest.raises(UserError, match=r"broken\.toml: not a TOML file"):
        read_config(broken)
    with pytest.raises(UserError, match=r"wrong\.toml: training\.seeds: unknown key \(did you mean seed\?\)"):
        read_config(wrong)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"broken\.toml: not a TOML file"):
        read_config(broken)


def test_a_feature_dimension_of_zero_takes_the_one_of_the_archive():
    assert with_feature_dimension(PRESETS["tiny"], 64, "a.h5").model.feature_dimension == 64
    assert with_feature_dimension(PRESETS["paper"], 2048, "a.h5") == PRESETS["paper"]
    with pytest.raises(UserError, match=r"a\.h5: features have 64 values a row, .* says 2048"):
        with_feature_dimension(PRESETS["paper"], 64, "a.h5")


@pytest.mark.parametrize(("written", "meant"), [(True, 1), (False, 0), (3, 3)])
def test_neighbours_are_read_as_they_were_written_when_there_could_be_one(written, meant):
    assert config_from_dict({"method": {"neighbours": written}}).method.neighbours == meant
